"""A job that still waits after its deadline ends, once, and nobody else's does."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, update

from app.db import Database
from app.errors import ConflictError, InvalidInputError
from app.jobs.deadlines import end_overdue
from app.jobs.events import events_after
from app.jobs.orm import JobRow
from app.jobs.service import JobService
from app.jobs.specs import SliceSpec
from tests.app.jobs.conftest import read
from tests.claims import claim_job


@pytest.fixture
def overdue(database: Database, project: str, spec: SliceSpec) -> list[str]:
    """Three queued jobs whose deadline has passed."""
    ahead = datetime.now(UTC) + timedelta(hours=1)
    with database.transaction() as session:
        service = JobService(session, project, max_attempts=3)
        jobs = [service.submit(spec.model_copy(update={"deadline": ahead})).id for _ in range(3)]
        session.execute(update(JobRow).values(deadline=func.now() - timedelta(seconds=1)))
    return jobs


def test_waiting_jobs_end_with_a_code_of_their_own(database: Database, project: str, overdue: list[str]) -> None:
    assert (end_overdue(database), end_overdue(database)) == (3, 0)
    for job_id in overdue:
        job = read(database, job_id)
        assert (job.status, (job.error or {})["code"]) == ("failed", "deadline_passed")
        assert job.finished_at is not None
        with database.transaction() as session:
            last = events_after(session, job_id, 0, limit=9)[-1]
            assert last.data == {"status": "failed", "reason": "deadline_passed", "attempt": 0}
            with pytest.raises(ConflictError, match="deadline"):
                JobService(session, project, max_attempts=3).retry(job_id)


def test_others_stay(database: Database, project: str, spec: SliceSpec, overdue: list[str]) -> None:
    running, cancelled, late = overdue
    with database.transaction() as session:
        service = JobService(session, project, max_attempts=3)
        without = service.submit(spec).id
        claim_job(session, running, owner="me", lease_s=60)
        service.cancel(cancelled)
    assert end_overdue(database) == 1
    found = [read(database, job_id).status for job_id in (running, cancelled, late, without)]
    assert found == ["running", "cancelled", "failed", "queued"]


def test_several_reapers_end_each_once(database: Database, overdue: list[str]) -> None:
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(end_overdue(database))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 3
    assert {read(database, job_id).event_count for job_id in overdue} == {2}


def test_a_deadline_in_the_past_is_refused(database: Database, project: str, spec: SliceSpec) -> None:
    past = spec.model_copy(update={"deadline": datetime.now(UTC) - timedelta(seconds=5)})
    with database.transaction() as session, pytest.raises(InvalidInputError) as refusal:
        JobService(session, project, max_attempts=3).submit(past)
    assert refusal.value.errors[0].pointer == "/deadline"
