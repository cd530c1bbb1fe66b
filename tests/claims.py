"""Claims of the job that a test is about, made as workers make them."""

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.jobs import leases
from app.jobs.claims import Claim
from app.jobs.fairness import LEVELS
from app.jobs.orm import JobRow


def claim_job(session: Session, job_id: str, *, owner: str, lease_s: float) -> Claim:
    """Take the job, which is queued, before others: for the moment of the claim it is the most urgent one."""
    job, by_id = session.get_one(JobRow, job_id), update(JobRow).where(JobRow.id == job_id)
    queue, priority = job.queue, job.priority
    session.execute(by_id.values(priority=LEVELS["high"]))
    held = leases.claim_next(session, queue, owner=owner, lease_s=lease_s)
    session.execute(by_id.values(priority=priority))
    assert held is not None
    assert held.job_id == job_id
    return held
