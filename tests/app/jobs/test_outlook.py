"""Where queued jobs stand, against the order in which they are claimed."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from app.db import Database
from app.jobs import completion
from app.jobs.orm import JobRow
from app.jobs.outlook import Outlook, take_picture
from tests.app.jobs.conftest import read
from tests.app.jobs.test_fairness import claim_all, claim_next, queue_jobs

__all__ = ["queue_jobs"]
Queue = Callable[..., list[str]]


def positions(database: Database, ids: list[str]) -> dict[str, int]:
    with database.transaction() as session:
        picture = take_picture(session)
    return {job_id: picture.place_of(read(database, job_id)).position for job_id in ids}


def test_positions_are_the_order_of_claims(database: Database, queue_jobs: Queue) -> None:
    running = queue_jobs("busy", 2)
    for _ in running:
        assert claim_next(database) is not None
    ids = [*queue_jobs("a", 3, priority=-1), *queue_jobs("busy", 4), *queue_jobs("a", 2), *queue_jobs("b", 5)]
    ids += [*queue_jobs("b", 2, priority=1), *queue_jobs("c"), *queue_jobs("busy", priority=1)]
    assert claim_next(database, "inspect") is None
    expected = positions(database, ids)
    assert sorted(expected.values()) == list(range(1, len(ids) + 1))
    assert claim_all(database) == sorted(ids, key=expected.__getitem__)


def test_the_eta_comes_from_recent_jobs_of_the_kind_and_from_those_that_run(
    database: Database, queue_jobs: Queue
) -> None:
    ended, jobs = queue_jobs("a", 3), queue_jobs("a", 5)

    def eta(job_id: str) -> float | None:
        place = Outlook(database).place_of(read(database, job_id))
        assert place is not None
        return place.eta_s

    assert eta(jobs[4]) is None
    now = datetime.now(UTC)
    for job_id, seconds in zip(ended, (10.0, 20.0, 600.0), strict=True):
        held = claim_next(database)
        assert held is not None
        with database.transaction() as session:
            completion.close(session, held, completion.JobStatus.SUCCEEDED)
            times = {"started_at": now - timedelta(seconds=seconds), "finished_at": now}
            session.execute(update(JobRow).where(JobRow.id == job_id).values(**times))
    assert eta(jobs[4]) is None  # nobody works
    assert [claim_next(database) is not None for _ in range(2)] == [True, True]
    assert [eta(job_id) for job_id in jobs[2:]] == [pytest.approx(rank * 20 / 2) for rank in (1, 2, 3)]
    assert Outlook(database).place_of(read(database, jobs[0])) is None


def test_a_picture_serves_many_questions(database: Database, queue_jobs: Queue) -> None:
    (first,) = queue_jobs("a")
    outlook, taken = Outlook(database), []
    real = database.autocommit

    def counting():
        taken.append(1)
        return real()

    database.autocommit = counting  # type: ignore[method-assign]
    row = read(database, first)
    taken.clear()
    assert [outlook.place_of(row).position for _ in range(50)] == [1] * 50
    assert len(taken) == 1
