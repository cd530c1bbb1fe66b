"""The fenced lease on a real Postgres."""

import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy import select, update

from app.db import Database
from app.jobs import completion, leases
from app.jobs.events import events_after
from app.jobs.leases import Claim, LeaseLostError
from app.jobs.orm import JobRow, OutboxRow
from app.jobs.reaper import reap
from app.jobs.service import JobService
from tests.app.jobs.conftest import read
from tests.claims import claim_job

Submit = Callable[[], str]


def claim_next(database: Database) -> Claim | None:
    with database.transaction() as session:
        return leases.claim_next(session, "compute", owner="me", lease_s=30)


def held_claim(database: Database, job_id: str, *, lease_s: float = 30.0) -> Claim:
    with database.transaction() as session:
        return claim_job(session, job_id, owner="me", lease_s=lease_s)


def expire(database: Database, job_id: str) -> None:
    with database.transaction() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(lease_until=JobRow.created_at))


def succeed(database: Database, held: Claim, result: dict[str, object]) -> None:
    with database.transaction() as session:
        completion.succeed(session, held, result=result, versions={}, outputs=[])


class TestClaim:
    def test_takes_a_queued_job_once(self, database: Database, submit: Submit) -> None:
        job_id = submit()
        first, second = claim_next(database), claim_next(database)
        assert first is not None
        assert second is None
        assert (first.fence, first.attempt, first.is_last_attempt) == (1, 1, False)
        assert read(database, job_id).status == "running"

    def test_two_hundred_claims_at_once_take_each_job_once(self, database: Database, submit: Submit) -> None:
        jobs = [submit() for _ in range(20)]
        taken: list[str] = []

        def take() -> None:
            for _ in range(25):
                held = claim_next(database)
                if held is not None:
                    taken.append(held.job_id)

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == sorted(jobs)

    def test_next_takes_the_oldest_of_its_queue(self, database: Database, submit: Submit) -> None:
        first, second = submit(), submit()
        with database.transaction() as session:
            assert leases.claim_next(session, "inspect", owner="me", lease_s=30) is None
            ids = [leases.claim_next(session, "compute", owner="me", lease_s=30) for _ in range(2)]
        assert [held.job_id for held in ids if held] == [first, second]

    def test_an_expired_lease_is_the_reapers_alone(self, database: Database, submit: Submit) -> None:
        job_id = submit()
        first = held_claim(database, job_id)
        expire(database, job_id)
        assert claim_next(database) is None
        assert reap(database) == 1
        second = held_claim(database, job_id)
        assert (second.fence, second.attempt) == (first.fence + 1, first.attempt + 1)


class TestFence:
    def test_a_late_finish_is_rejected_and_leaves_nothing(self, database: Database, submit: Submit) -> None:
        job_id = submit()
        late = held_claim(database, job_id)
        expire(database, job_id)
        reap(database)
        current = held_claim(database, job_id)
        with pytest.raises(LeaseLostError):
            succeed(database, late, {"winner": "late"})
        succeed(database, current, {"winner": "current"})
        with pytest.raises(LeaseLostError):
            succeed(database, late, {"winner": "late"})
        job = read(database, job_id)
        assert (job.status, job.result) == ("succeeded", {"winner": "current"})
        with database.transaction() as session:
            ends = [e for e in events_after(session, job_id, 0, limit=100) if e.data.get("status") == "succeeded"]
        assert len(ends) == 1

    def test_renewing_prolongs_and_reports_a_cancel_request(
        self, database: Database, submit: Submit, project: str
    ) -> None:
        job_id = submit()
        held = held_claim(database, job_id, lease_s=1)
        with database.transaction() as session:
            assert leases.renew(session, held, lease_s=60) is False
        until = read(database, job_id).lease_until
        assert until is not None
        assert until.timestamp() - time.time() > 30
        with database.transaction() as session:
            JobService(session, project, max_attempts=3).cancel(job_id)
        with database.transaction() as session:
            assert leases.renew(session, held, lease_s=60) is True

    def test_renewing_a_lost_lease_raises(self, database: Database, submit: Submit) -> None:
        job_id = submit()
        held = held_claim(database, job_id)
        expire(database, job_id)
        reap(database)
        with pytest.raises(LeaseLostError), database.transaction() as session:
            leases.renew(session, held, lease_s=60)

    def test_giving_back_refunds_the_attempt_and_announces_the_job(self, database: Database, submit: Submit) -> None:
        job_id = submit()
        held = held_claim(database, job_id)
        with database.transaction() as session:
            session.execute(OutboxRow.__table__.delete())
            leases.give_back(session, held, reason="worker_stopped", refund=True)
        job = read(database, job_id)
        assert (job.status, job.attempt, job.fence) == ("queued", 0, 1)
        with database.transaction() as session:
            assert session.scalars(select(OutboxRow.job_id)).all() == [job_id]


class TestReaper:
    def test_leaves_living_leases_alone(self, database: Database, submit: Submit) -> None:
        held_claim(database, submit())
        assert reap(database) == 0

    def test_requeues_until_the_attempts_are_used_up_then_fails(self, database: Database, submit: Submit) -> None:
        job_id = submit()
        statuses = []
        for _ in range(3):
            held_claim(database, job_id)
            expire(database, job_id)
            assert reap(database) == 1
            statuses.append(read(database, job_id).status)
        job = read(database, job_id)
        assert statuses == ["queued", "queued", "failed"]
        assert job.error is not None
        assert job.error["code"] == "worker_lost"

    def test_ends_a_job_that_was_to_be_cancelled(self, database: Database, submit: Submit, project: str) -> None:
        job_id = submit()
        held_claim(database, job_id)
        with database.transaction() as session:
            JobService(session, project, max_attempts=3).cancel(job_id)
        expire(database, job_id)
        reap(database)
        assert read(database, job_id).status == "cancelled"
