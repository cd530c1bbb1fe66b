"""Signs of life: in the table, and in the file that the health check reads."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.artifacts.store import LocalBlobStore
from app.db import Database
from app.errors import ServiceError
from app.jobs.workers import list_live, live_workers
from app.settings import Settings
from worker import gpu_readings as gpus
from worker.heart import beating
from worker.heartbeat_file import check_heartbeat
from worker.supervisor import Supervisor

COMMAND = [sys.executable, "-m", "neusemslice_cli.main", "worker"]


def until(holds: Callable[[], bool], timeout_s: float = 20) -> bool:
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
        check_heartbeat(quick.data_dir)
    with beating(quick, supervisor, ("compute",)):
        assert until(lambda: live() == 1)
        check_heartbeat(quick.data_dir)
        supervisor.drain()
        assert until(lambda: live() == 0)
        with database.transaction() as session:
            (worker,) = list_live(session)
        assert (worker.id, worker.pid, worker.draining) == (supervisor.owner, os.getpid(), True)
    with database.transaction() as session:
        assert list_live(session) == []
    with pytest.raises(ServiceError, match="No worker runs"):
        check_heartbeat(quick.data_dir)


def test_a_database_that_is_away_does_not_make_a_worker_look_dead(quick: Settings) -> None:
    away = Database("postgresql://postgres@127.0.0.1:1/postgres")
    supervisor = Supervisor(quick, away, LocalBlobStore(quick.blob_dir))
    with beating(quick, supervisor, ("compute",)):
        time.sleep(quick.beat_s * 5)
        check_heartbeat(quick.data_dir)
    away.dispose()


def test_a_hanging_worker_fails_its_health_check(tmp_path: Path, new_database: Callable[[], str]) -> None:
    url = new_database()
    times = {"NEUSEMSLICE_BEAT_S": "0.2", "NEUSEMSLICE_POLL_S": "0.2", "NEUSEMSLICE_WARM_START": "false"}
    environment = os.environ | times | {"DATABASE_URL": url, "NEUSEMSLICE_DATA_DIR": str(tmp_path)}
    database = Database(url)

    def is_healthy() -> bool:
        return subprocess.run([*COMMAND, "--check"], env=environment, capture_output=True, check=False).returncode == 0

    def live() -> tuple[int, int]:
        with database.transaction() as session:
            return live_workers(session, "compute"), live_workers(session, "inspect")

    process = subprocess.Popen(COMMAND, env=environment, stderr=subprocess.DEVNULL)
    try:
        assert until(is_healthy)
        assert until(lambda: live() == (1, 1))
        process.send_signal(signal.SIGSTOP)
        assert until(lambda: not is_healthy())
        assert until(lambda: live() == (0, 0))
        process.send_signal(signal.SIGCONT)
        assert until(is_healthy)
        assert until(lambda: live() == (1, 1))
        process.terminate()
        assert process.wait(20) == 0
        assert live() == (0, 0)
        assert not is_healthy()
    finally:
        process.kill()
        process.wait()
        database.dispose()


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
