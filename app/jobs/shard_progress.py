"""What clients see of a job while its shards work: the sum of theirs."""

from collections.abc import Sequence

from sqlalchemy import Float, func, select, update
from sqlalchemy.orm import Session

from app.jobs.claims import Claim
from app.jobs.events import PROGRESS, add_event
from app.jobs.orm import JobRow
from app.jobs.status import JobStatus

_STEP = 0.01
_SHARE = 0.5
"""Of the whole job: merging, cutting and measuring come after."""


def pass_on(session: Session, held: Claim) -> None:
    """Let the parent of a running shard show how far all of them are."""
    parent_id = session.execute(select(JobRow.parent_job_id).where(JobRow.id == held.job_id)).scalar_one()
    if parent_id is not None:
        show(session, parent_id, session.scalars(select(JobRow).where(JobRow.parent_job_id == parent_id)).all())


def show(session: Session, parent_id: str, shards: Sequence[JobRow]) -> None:
    """Put the shards' progress on their parent, if that is a hundredth further than what it shows."""
    count = int(shards[0].spec["count"]) if shards else 1
    done = count - len(shards) + sum(shard.status == JobStatus.SUCCEEDED for shard in shards)
    running = [shard.progress["fraction"] for shard in shards if shard.status == JobStatus.RUNNING and shard.progress]
    fraction = round(_SHARE * min(1.0, (done + sum(running)) / count), 4)
    progress = {"stage": "shards", "done": done, "total": count, "fraction": fraction, "eta_s": None}
    shown = func.coalesce(JobRow.progress["fraction"].astext.cast(Float), -1.0)
    further = JobRow.id == parent_id, JobRow.status == JobStatus.RUNNING.value, JobRow.lease_owner.is_(None)
    query = update(JobRow).where(*further, shown + _STEP <= fraction).values(progress=progress).returning(JobRow.id)
    if session.execute(query).scalar_one_or_none() is not None:
        add_event(session, parent_id, PROGRESS, progress)
