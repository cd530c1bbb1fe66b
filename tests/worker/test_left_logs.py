"""What an attempt printed is kept although its supervisor was killed."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from sqlalchemy import select, update

from app.artifacts.store import LocalBlobStore
from app.celery_queue import TAKE_JOBS
from app.db import Database
from app.jobs.logs import log_of
from app.jobs.orm import AttemptLogRow, JobRow
from app.jobs.reaper import reap
from app.settings import Settings
from tests.worker import test_supervisor as supervising
from tests.worker.test_process_log import LIMITS
from worker.celery_app import make_worker
from worker.order import LOG, ORDER, Order
from worker.supervisor import Supervisor
from worker.sweeper import sweep

store, slow_inspection = supervising.store, supervising.slow_inspection
HALF_A_SENTENCE = b"epoch 3 of"


def work(settings: Settings, url: str) -> None:
    Supervisor(settings, Database(url), LocalBlobStore(settings.blob_dir)).run_next("inspect")


def take_jobs(settings: Settings, url: str, job_id: str) -> None:
    make_worker(settings, url).tasks[TAKE_JOBS]("compute", job_id)


def kill_a_supervisor_at_work(settings: Settings, database: Database, job_id: str, fence: int) -> Path:
    """The log that its process had begun. The lease is over then."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=(settings, database.url))
    process.start()
    log = settings.work_dir / job_id / f"attempt-{fence}" / LOG
    deadline = time.monotonic() + 120
    while not (log.exists() and b'"stage"' in log.read_bytes()):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with log.open("ab") as file:
        file.write(HALF_A_SENTENCE)
    with database.transaction() as session:
        session.execute(update(JobRow).values(lease_until=JobRow.created_at))
    return log


def kept(database: Database, job_id: str) -> list[tuple[int, int, bytes]]:
    with database.transaction() as session:
        query = select(AttemptLogRow).where(AttemptLogRow.job_id == job_id).order_by(AttemptLogRow.fence)
        return [(row.fence, row.attempt, row.content) for row in session.scalars(query)]


@pytest.fixture
def slow_id(slow_inspection: tuple[str, str]) -> str:
    return slow_inspection[0]


def test_the_sweeper_keeps_the_log_of_a_job_that_nobody_takes_up_again(
    settings: Settings, database: Database, slow_id: str
) -> None:
    with database.transaction() as session:
        session.execute(update(JobRow).values(attempt_limit=1))
    log = kill_a_supervisor_at_work(settings, database, slow_id, fence=1)
    printed = log.read_bytes()
    sweep(settings, database)
    assert kept(database, slow_id) == []  # for all that is known, it is still worked on
    assert reap(database) == 1
    stranger = settings.work_dir / "job_of_another_database" / "attempt-1" / LOG
    stranger.parent.mkdir(parents=True)
    stranger.touch()
    torn = settings.work_dir / slow_id / "attempt-0009"
    torn.mkdir()
    for name in (LOG, ORDER):
        (torn / name).touch()
    sweep(settings, database)
    assert kept(database, slow_id) == [(1, 1, printed)]
    assert (log.exists(), stranger.exists(), (torn / LOG).exists()) == (False, True, False)
    log.write_bytes(b"by a supervisor that had only been paused")
    sweep(settings, database)
    assert kept(database, slow_id) == [(1, 1, printed)]
    first, *_, last = printed.splitlines()
    assert (json.loads(first)["attempt"], last) == (1, HALF_A_SENTENCE)
    with database.transaction() as session:
        assert session.get_one(JobRow, slow_id).status == "failed"
        assert log_of(session, slow_id, None).attempt == 1


def test_the_next_supervisor_keeps_the_log_of_the_one_before(
    settings: Settings, database: Database, slow_id: str
) -> None:
    printed = kill_a_supervisor_at_work(settings, database, slow_id, fence=1).read_bytes()
    assert reap(database) == 1
    again = kill_a_supervisor_at_work(settings, database, slow_id, fence=2)
    assert kept(database, slow_id) == [(1, 1, printed)]
    assert reap(database) == 1
    sweep(settings, database)
    assert [(fence, attempt) for fence, attempt, _ in kept(database, slow_id)] == [(1, 1), (2, 2)]
    assert not again.exists()


def test_a_celery_worker_tidies_its_machine_up_as_a_relay_on_another_cannot(
    settings: Settings, database: Database, slow_id: str
) -> None:
    with database.transaction() as session:
        session.execute(update(JobRow).values(status="failed", fence=7, finished_at=JobRow.created_at))
    folder = settings.work_dir / slow_id / "attempt-7"
    folder.mkdir(parents=True)
    order = Order(spec={}, files={}, values={}, limits=LIMITS, log_context={"attempt": 2})
    (folder / ORDER).write_text(order.model_dump_json())
    (folder / LOG).write_bytes(b"epoch 1\n")
    alone = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0", "warm_start": False})
    worker = multiprocessing.get_context("spawn").Process(target=take_jobs, args=(alone, database.url, slow_id))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert kept(database, slow_id) == [(7, 2, b"epoch 1\n")]
    assert not (folder / LOG).exists()
