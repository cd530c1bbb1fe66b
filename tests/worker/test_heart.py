"""Signs of life: in the table, and in the file that the health check reads."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest

from app.artifacts.store import LocalBlobStore
from app.db import Database
from app.errors import ServiceError
from app.jobs.queue import LocalQueue
from app.jobs.workers import list_live, live_workers
from app.settings import Settings
from worker import gpu_readings as gpus
from worker.heart import beating
from worker.heartbeat_file import HeartbeatFile, check_heartbeat
from worker.maintenance import maintain
from worker.supervisor import Supervisor

COMMAND = [sys.executable, "-m", "neusemslice_cli.main"]


def until(holds: Callable[[], bool], timeout_s: float = 60) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def quick(settings: Settings) -> Settings:
    return settings.model_copy(update={"beat_s": 0.2})


def test_a_worker_counts_while_it_beats_and_takes_jobs(quick: Settings, database: Database) -> None:
    supervisor = Supervisor(quick, database, LocalBlobStore(quick.blob_dir))

    def live() -> int:
        with database.transaction() as session:
            return live_workers(session, "compute")

    with pytest.raises(ServiceError, match="No worker runs"):
        check_heartbeat(quick.data_dir, "worker")
    with beating(quick, supervisor, ("compute",)):
        assert until(lambda: live() == 1)
        check_heartbeat(quick.data_dir, "worker")
        supervisor.drain()
        assert until(lambda: live() == 0)
        with database.transaction() as session:
            (worker,) = list_live(session)
        assert (worker.id, worker.pid, worker.draining) == (supervisor.owner, os.getpid(), True)
    with database.transaction() as session:
        assert list_live(session) == []
    with pytest.raises(ServiceError, match="No worker runs"):
        check_heartbeat(quick.data_dir, "worker")


def test_a_database_that_is_away_does_not_make_a_worker_look_dead(quick: Settings) -> None:
    away = Database("postgresql://postgres@127.0.0.1:1/postgres")
    supervisor = Supervisor(quick, away, LocalBlobStore(quick.blob_dir))
    with beating(quick, supervisor, ("compute",)):
        time.sleep(quick.beat_s * 5)
        check_heartbeat(quick.data_dir, "worker")
    away.dispose()


@dataclass
class Running:
    """A process of the service with the environment that it and its health check have."""

    command: list[str]
    environment: dict[str, str]

    def is_healthy(self) -> bool:
        command = [*self.command, "--check"]
        return subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode == 0

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(self.command, env=self.environment, stderr=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def environment(tmp_path: Path, new_database: Callable[[], str]) -> dict[str, str]:
    times = {"NEUSEMSLICE_BEAT_S": "0.5", "NEUSEMSLICE_POLL_S": "0.2", "NEUSEMSLICE_WARM_START": "false"}
    return os.environ | times | {"DATABASE_URL": new_database(), "NEUSEMSLICE_DATA_DIR": str(tmp_path)}


def test_a_hanging_worker_fails_its_health_check(environment: dict[str, str]) -> None:
    worker = Running([*COMMAND, "worker"], environment)
    database = Database(environment["DATABASE_URL"])

    def live() -> tuple[int, int]:
        with database.transaction() as session:
            return live_workers(session, "compute"), live_workers(session, "inspect")

    with worker.started() as process:
        assert until(worker.is_healthy)
        assert until(lambda: live() == (1, 1))
        process.send_signal(signal.SIGSTOP)
        assert until(lambda: not worker.is_healthy())
        assert until(lambda: live() == (0, 0))
        process.send_signal(signal.SIGCONT)
        assert until(worker.is_healthy)
        assert until(lambda: live() == (1, 1))
        process.terminate()
        assert process.wait(20) == 0
        assert live() == (0, 0)
        assert not worker.is_healthy()
    database.dispose()


def test_a_hanging_relay_fails_its_health_check(environment: dict[str, str], tmp_path: Path) -> None:
    relay = Running([*COMMAND, "relay"], environment)
    with relay.started() as process:
        assert until(relay.is_healthy)
        with pytest.raises(ServiceError, match="No worker runs"):
            check_heartbeat(tmp_path, "worker")
        process.send_signal(signal.SIGSTOP)
        assert until(lambda: not relay.is_healthy())
        process.send_signal(signal.SIGCONT)
        assert until(relay.is_healthy)
        process.terminate()
        assert process.wait(20) == 0
        with pytest.raises(ServiceError, match="No relay runs"):
            check_heartbeat(tmp_path, "relay")


def test_a_relay_whose_rounds_fail_is_alive(quick: Settings) -> None:
    settings = quick.model_copy(update={"poll_s": 0.1})
    away, stopping = Database("postgresql://postgres@127.0.0.1:1/postgres"), Event()
    heartbeat = HeartbeatFile(settings.data_dir, "relay")
    rounds = Thread(target=maintain, args=(settings, away, LocalQueue(away), stopping, heartbeat))
    rounds.start()
    try:
        time.sleep(settings.beat_s * 5)
        check_heartbeat(settings.data_dir, "relay")
    finally:
        stopping.set()
        rounds.join()
        away.dispose()
    time.sleep(settings.beat_s * 3.5)
    with pytest.raises(ServiceError, match="relay of this machine has been silent"):
        check_heartbeat(settings.data_dir, "relay")


@pytest.mark.parametrize(
    ("choice", "seen"),
    [
        (None, ["GPU-aa", "GPU-ab", "GPU-b"]),
        ("", []),
        ("-1", []),
        ("1", ["GPU-ab"]),
        ("2, 0", ["GPU-b", "GPU-aa"]),
        ("0,7,1", ["GPU-aa"]),
        ("GPU-b", ["GPU-b"]),
        ("GPU-a", []),
    ],
)
def test_a_worker_reports_the_gpus_that_cuda_shows_it(choice: str | None, seen: list[str]) -> None:
    assert gpus.visible(["GPU-aa", "GPU-ab", "GPU-b"], choice) == seen


def test_a_gpu_that_does_not_tell_its_load_still_tells_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotToldError(Exception):
        pass

    def not_told(handle: int) -> None:
        raise NotToldError

    nvml = SimpleNamespace(
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}",
        nvmlDeviceGetName=lambda handle: "H100",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=handle + 1, total=80),
        nvmlDeviceGetUtilizationRates=not_told,
        NVMLError=NotToldError,
        NVMLError_NotSupported=NotToldError,
    )
    monkeypatch.setattr(gpus, "_nvml", lambda: nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    (reading,) = gpus.read_gpus()
    assert reading == {
        "uuid": "GPU-1",
        "name": "H100",
        "memory_used_bytes": 2,
        "memory_total_bytes": 80,
        "utilization": None,
    }
    nvml.nvmlDeviceGetCount = lambda: not_told(0)
    assert gpus.read_gpus() == []


def test_a_worker_that_is_shown_no_gpu_reports_none_and_loads_no_torch() -> None:
    code = "import sys, worker.gpu_readings as own; print(len(own.read_gpus())); sys.exit('torch' in sys.modules)"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "0\n"
