"""Which workers count, on the real database and by its clock."""

from dataclasses import replace
from datetime import timedelta

from sqlalchemy import func, update

from app.db import Database
from app.jobs.workers import BEATS_MISSED, Worker, WorkerRow, beat, forget_silent, leave, list_live, live_workers

ONE = Worker("own_1", "gpu-1", 17, ("compute",), "cuda:0", "0.1.0", beat_s=5.0)


def fall_silent(database: Database, worker_id: str, seconds: float) -> None:
    with database.transaction() as session:
        ago = func.clock_timestamp() - timedelta(seconds=seconds)
        session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(last_seen=ago))


def test_only_workers_that_take_jobs_of_the_queue_count(database: Database) -> None:
    with database.transaction() as session:
        beat(session, ONE)
        beat(session, ONE)
        beat(session, replace(ONE, id="own_2", queues=("inspect", "compute")))
        beat(session, replace(ONE, id="own_3"), draining=True)
        assert (live_workers(session, "compute"), live_workers(session, "inspect")) == (2, 1)
        assert live_workers(session, "other") == 0
        leave(session, "own_1")
        assert live_workers(session, "compute") == 1
        assert [worker.id for worker in list_live(session)] == ["own_2", "own_3"]


def test_a_silent_worker_counts_no_more_until_it_is_heard_again(database: Database) -> None:
    with database.transaction() as session:
        beat(session, ONE)
    fall_silent(database, "own_1", ONE.beat_s * BEATS_MISSED + 1)
    with database.transaction() as session:
        assert (live_workers(session, "compute"), list_live(session)) == (0, [])
        beat(session, ONE)
        assert live_workers(session, "compute") == 1


def test_what_dead_workers_left_is_removed_in_time(database: Database) -> None:
    with database.transaction() as session:
        beat(session, ONE)
        beat(session, replace(ONE, id="own_2"))
    fall_silent(database, "own_1", 100)
    with database.transaction() as session:
        forget_silent(session, older_than_s=60)
        assert session.get(WorkerRow, "own_1") is None
        assert session.get(WorkerRow, "own_2") is not None
