"""What a running job gets when its worker drains: a real process, and the flags that signals raise."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.artifacts.store import LocalBlobStore
from app.db import Database
from app.jobs.orm import JobRow
from app.settings import Settings
from tests.worker import test_supervisor
from worker.grace import Grace
from worker.stop_signals import StopSignals
from worker.supervisor import Supervisor

store, slow_inspection = test_supervisor.store, test_supervisor.slow_inspection


@contextmanager
def working(
    settings: Settings, database: Database, store: LocalBlobStore, job_id: str, signals: StopSignals
) -> Iterator[threading.Thread]:
    """A supervisor whose job's process is at work."""
    supervisor = Supervisor(settings, database, store, signals.stopping, at_once=signals.at_once)
    thread = threading.Thread(target=supervisor.run_next, args=("inspect",))
    thread.start()
    deadline = time.monotonic() + 60
    while not list(settings.work_dir.rglob("stages.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        yield thread
    finally:
        signals.receive()
        signals.receive()
        thread.join(30)


def status(database: Database, job_id: str) -> tuple[str, int]:
    with database.transaction() as session:
        job = session.get_one(JobRow, job_id)
        return job.status, job.attempt


def test_a_job_is_given_back_once_it_has_left_a_checkpoint_which_the_next_attempt_finds(
    settings: Settings, database: Database, store: LocalBlobStore, slow_inspection: tuple[str, str]
) -> None:
    signals, (job_id, _) = StopSignals(), slow_inspection
    patient = settings.model_copy(update={"drain_grace_s": 300.0})
    with working(patient, database, store, job_id, signals) as thread:
        (folder,) = settings.work_dir.rglob("checkpoints")
        (folder / "before.safetensors").write_text("1 epoch")
        signals.receive()
        thread.join(0.5)
        assert thread.is_alive()
        (folder / "training.safetensors.tmp").write_text("half of an ep")
        thread.join(0.5)
        assert (thread.is_alive(), status(database, job_id)) == (True, ("running", 1))
        (folder / "training.safetensors.tmp").replace(folder / "training.safetensors")
        thread.join(30)
        assert not thread.is_alive()
    assert status(database, job_id) == ("queued", 0)
    left = sorted(path.name for path in settings.work_dir.rglob("*.safetensors"))
    assert left == ["before.safetensors", "training.safetensors"]


def test_a_job_that_leaves_none_has_until_the_end_of_the_grace(tmp_path: Path) -> None:
    signals = StopSignals()
    grace = Grace(signals.stopping, signals.at_once, tmp_path, grace_s=0.3)
    signals.receive()
    assert not grace.is_over()
    time.sleep(0.3)
    assert grace.is_over()


def test_a_second_signal_ends_the_grace_at_once(tmp_path: Path) -> None:
    signals = StopSignals()
    grace = Grace(signals.stopping, signals.at_once, tmp_path, grace_s=300.0)
    signals.receive()
    assert not grace.is_over()
    signals.receive()
    assert grace.is_over()


def test_a_job_that_is_claimed_by_a_draining_worker_gets_no_grace(tmp_path: Path) -> None:
    draining, never = threading.Event(), threading.Event()
    before = Grace(draining, never, tmp_path, grace_s=300.0)
    assert not before.is_over()
    draining.set()
    assert not before.is_over()
    assert Grace(draining, never, tmp_path, grace_s=300.0).is_over()
