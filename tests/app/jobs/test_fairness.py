"""Whose turn it is, on a real Postgres."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DBAPIError

from app.db import Database
from app.ids import new_id
from app.jobs import completion, leases
from app.jobs.leases import Claim
from app.jobs.orm import JobRow
from app.jobs.queue import enqueue
from app.jobs.service import JobService
from app.jobs.specs import SliceSpec
from app.projects.keys import ensure_project
from app.projects.orm import ProjectRow
from tests.app.jobs.conftest import read

Queue = Callable[..., list[str]]


@pytest.fixture
def queue_jobs(database: Database) -> Queue:
    """Queues jobs of a project, by its name, and returns their ids, oldest first."""
    numbers = iter(range(10**6))

    def do(project: str, count: int = 1, *, priority: int = 0, queue: str = "compute") -> list[str]:
        with database.transaction() as session:
            owner = ensure_project(session, project)
            ids = [f"job_{next(numbers):026}" for _ in range(count)]
            for job_id in ids:
                common = {"kind": "slice", "spec": {"kind": "slice"}, "attempt_limit": 3, "metadata_": {}}
                job = JobRow(id=job_id, project_id=owner, queue=queue, priority=priority, **common)
                session.add(job)
                session.flush()
                enqueue(session, job)
        return ids

    return do


def limit(database: Database, project: str, most: int | None) -> None:
    with database.transaction() as session:
        session.execute(update(ProjectRow).where(ProjectRow.name == project).values(max_running_jobs=most))


def claim_next(database: Database, queue: str = "compute") -> Claim | None:
    with database.transaction() as session:
        return leases.claim_next(session, queue, owner=new_id("own"), lease_s=30)


def claim_all(database: Database, queue: str = "compute") -> list[str]:
    return [held.job_id for held in iter(lambda: claim_next(database, queue), None)]


def end(database: Database, held: Claim | None) -> None:
    assert held is not None
    with database.transaction() as session:
        completion.cancel(session, held)


def interleaved(*of_projects: Sequence[str]) -> list[str]:
    longest = max(len(ids) for ids in of_projects)
    return [ids[turn] for turn in range(longest) for ids in of_projects if turn < len(ids)]


def test_projects_take_turns_however_much_one_has_queued(database: Database, queue_jobs: Queue) -> None:
    many, some, one = queue_jobs("many", 5), queue_jobs("some", 2), queue_jobs("one")
    assert claim_all(database) == interleaved(many, some, one)


def test_the_project_with_the_fewest_running_jobs_is_next(database: Database, queue_jobs: Queue) -> None:
    first, second = queue_jobs("first", 3), queue_jobs("second", 3)
    held = [claim_next(database) for _ in range(4)]
    assert [claim.job_id for claim in held if claim] == interleaved(first, second)[:4]
    end(database, held[1])
    taken = claim_next(database)
    assert taken is not None
    assert taken.job_id == second[2]


def test_urgent_jobs_go_first_whosesoever_and_then_in_turns(database: Database, queue_jobs: Queue) -> None:
    low, normal = queue_jobs("a", 2, priority=-1), queue_jobs("a", 2)
    high_a, high_b = queue_jobs("a", 2, priority=1), queue_jobs("b", 2, priority=1)
    assert claim_all(database) == [*interleaved(high_a, high_b), *normal, *low]


def test_a_spec_says_how_urgent_it_is(database: Database, project: str, spec: SliceSpec) -> None:
    with database.transaction() as session:
        service = JobService(session, project, max_attempts=3)
        ids = [service.submit(spec.model_copy(update={"priority": word})).id for word in ("low", "normal", "high")]
        assert "priority" not in service.get(ids[0]).spec
    assert claim_all(database) == ids[::-1]


class TestLimit:
    def test_a_project_at_its_limit_is_passed_over_until_a_job_ends(
        self, database: Database, queue_jobs: Queue
    ) -> None:
        limited, free = queue_jobs("limited", 3), queue_jobs("free", 2)
        limit(database, "limited", 1)
        held = claim_next(database)
        assert claim_all(database) == free
        end(database, held)
        assert claim_all(database) == [limited[1]]

    def test_it_holds_back_no_inspection(self, database: Database, queue_jobs: Queue) -> None:
        compute, inspections = queue_jobs("limited", 1), queue_jobs("limited", 2, queue="inspect")
        limit(database, "limited", 0)
        assert claim_all(database, "inspect") == inspections
        assert claim_all(database) == []
        assert read(database, compute[0]).status == "queued"

    def test_a_claim_that_is_not_committed_yet_holds_up_nobody(self, database: Database, queue_jobs: Queue) -> None:
        limited, free = queue_jobs("limited", 2), queue_jobs("free", 2)
        limit(database, "limited", 2)
        with database.transaction() as session:
            held = leases.claim_next(session, "compute", owner="slow", lease_s=30)
            assert held is not None
            assert held.job_id == limited[0]
            assert claim_all(database) == free  # whether `limited` has room, only its own open claim knows
        assert claim_all(database) == [limited[1]]

    def test_a_supervisor_that_is_stopped_amid_a_claim_loses_it(self, database: Database, queue_jobs: Queue) -> None:
        jobs = queue_jobs("a", 2)

        def claim_and_stop() -> None:
            with database.transaction() as session:
                assert session.scalar(text("SHOW idle_in_transaction_session_timeout")) == "5min"
                assert leases.claim_next(session, "compute", owner="stopped", lease_s=30) is not None
                session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '100ms'"))
                time.sleep(1)
                session.execute(text("SELECT 1"))

        with pytest.raises(DBAPIError, match=r"idle-in-transaction|server closed"):
            claim_and_stop()
        assert claim_all(database) == jobs

    def test_eight_supervisors_at_once_keep_it_and_leave_nothing(self, database: Database, queue_jobs: Queue) -> None:
        jobs = [*queue_jobs("limited", 12), *queue_jobs("free", 12)]
        limit(database, "limited", 2)
        start, taken, most = threading.Barrier(8), Counter[str](), []

        def work() -> None:
            start.wait()
            idle = 0
            while idle < 10:
                held = claim_next(database)
                if held is None:
                    idle += 1
                    time.sleep(0.02)
                    continue
                taken[held.job_id] += 1
                with database.transaction() as session:
                    running = select(func.count()).where(JobRow.status == "running").join(ProjectRow)
                    query = running.select_from(JobRow).where(ProjectRow.name == "limited")
                    most.append(session.execute(query).scalar_one())
                end(database, held)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(most) == 2
        for held in iter(lambda: claim_next(database), None):
            taken[held.job_id] += 1
            end(database, held)
        assert taken == Counter(jobs)
