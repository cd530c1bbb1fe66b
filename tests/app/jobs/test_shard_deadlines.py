"""A job that waits for its shards ends at its deadline, and its shards with it."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, update

from app.db import Database
from app.errors import ConflictError
from app.jobs import completion, leases
from app.jobs.deadlines import end_overdue
from app.jobs.events import events_after
from app.jobs.orm import JobRow
from app.jobs.reaper import reap
from app.jobs.service import JobService
from tests.app.jobs.conftest import read
from tests.app.jobs.test_shards import (  # noqa: F401 fixtures
    SHARDS,
    parent,
    shards_of,
    split,
    statuses,
    submit,
    succeed,
    take,
)

AHEAD = timedelta(hours=1)


def pass_deadline(database: Database) -> None:
    """Of all jobs."""
    with database.transaction() as session:
        session.execute(update(JobRow).values(deadline=func.now() - timedelta(seconds=1)))


def test_shards_have_the_limits_of_their_job(database: Database, submit: Callable[..., str]) -> None:  # noqa: F811
    deadline = datetime.now(UTC) + AHEAD
    job_id = submit(deadline=deadline, max_runtime_s=7.0)
    assert split(database, take(database))
    found = shards_of(database, job_id)
    assert {(shard.deadline, shard.max_runtime_s) for shard in found} == {(deadline, 7.0)}
    assert not {"deadline", "max_runtime_s"} & found[0].spec.keys()


def test_a_waiting_job_ends_at_its_deadline_and_stops_its_shards(
    database: Database,
    project: str,
    parent: str,  # noqa: F811
) -> None:
    succeed(database, take(database))
    running = take(database)
    pass_deadline(database)
    assert (end_overdue(database), end_overdue(database)) == (1, 0)
    job = read(database, parent)
    assert (job.status, job.queue, (job.error or {})["code"]) == ("failed", "compute", "deadline_passed")
    assert "still waited for its shards" in (job.error or {})["detail"]
    assert job.finished_at is not None
    assert statuses(database, parent) == ["succeeded", "running", "cancelled"]
    with database.transaction() as session:
        last = events_after(session, parent, 0, limit=99)[-1]
        assert last.data == {"status": "failed", "reason": "deadline_passed", "attempt": 1}
        assert leases.renew(session, running, lease_s=30) is True
        completion.cancel(session, running)
    reap(database)
    assert read(database, parent).event_count == last.seq
    assert statuses(database, parent) == ["succeeded", "cancelled", "cancelled"]
    with database.transaction() as session, pytest.raises(ConflictError, match="deadline"):
        JobService(session, project, max_attempts=3).retry(parent)


def test_a_waiting_job_before_its_deadline_stays(database: Database, submit: Callable[..., str]) -> None:  # noqa: F811
    job_id = submit(deadline=datetime.now(UTC) + AHEAD)
    assert split(database, take(database))
    assert end_overdue(database) == 0
    assert (read(database, job_id).status, statuses(database, job_id)) == ("running", ["queued"] * SHARDS)


def test_a_job_whose_shards_were_done_in_time_but_not_the_rest_ends_too(
    database: Database,
    parent: str,  # noqa: F811
) -> None:
    for _ in range(SHARDS):
        succeed(database, take(database))
    pass_deadline(database)
    assert end_overdue(database) == 1
    assert (read(database, parent).status, statuses(database, parent)) == ("failed", ["succeeded"] * SHARDS)


def test_several_processes_end_each_once_while_its_last_shard_ends(
    database: Database,
    parent: str,  # noqa: F811
) -> None:
    """The last shard's commit and the deadline's want the same rows; whichever is first, the job ends once."""
    succeed(database, take(database))
    succeed(database, take(database))
    last = take(database)
    pass_deadline(database)
    counts: list[int] = []
    deeds = [lambda: counts.append(end_overdue(database))] * 4 + [lambda: succeed(database, last)]
    threads = [threading.Thread(target=deed) for deed in deeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts.append(end_overdue(database))
    assert sum(counts) == 1
    job = read(database, parent)
    assert (job.status, (job.error or {})["code"]) == ("failed", "deadline_passed")
    assert statuses(database, parent) == ["succeeded"] * SHARDS
    with database.transaction() as session:
        events = events_after(session, parent, 0, limit=99)
        assert [event.data.get("status") for event in events].count("failed") == 1
