"""The whole service as its users have it: `neusemslice serve` in its own processes, talked to over HTTP."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from neusemslice_cli.client import Client

READY_S = 60.0
SEEDS = itertools.count(100)
CATEGORIES = 4
SHAPE = [1, 8, 8]
SIZES = [64, 48, 32, CATEGORIES]
ARCHITECTURE = {"builder": "mlp", "kwargs": {"sizes": SIZES}, "input_shape": SHAPE}


@dataclass
class Service:
    """A server that tests can start, stop, and shoot at."""

    data_dir: Path
    extra: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    companions: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    uploaded: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.data_dir / "server.log").read_text()

    def start(self, *arguments: str) -> "Service":
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        short = {"LEASE_S": "3", "HEARTBEAT_S": "0.3", "POLL_S": "0.5", "CANCEL_GRACE_S": "0.3", "JOB_THREADS": "1"}
        short |= {"DRAIN_GRACE_S": "0.5", "BEAT_S": "0.5"}
        environment = os.environ | {f"NEUSEMSLICE_{name}": value for name, value in short.items()} | self.extra
        command = [sys.executable, "-m", "neusemslice_cli.main", "serve", "--port", str(self.port)]
        with (self.data_dir / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(self.data_dir), *arguments], stdout=log, stderr=log, env=environment
            )
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=2).is_success:
                    return self
            time.sleep(0.1)
        raise AssertionError(f"not ready:\n{self.log[-4000:]}")

    def client(self) -> Client:
        return Client(self.url, (self.data_dir / "api-key").read_text().strip())

    def http(self) -> httpx.Client:
        key = (self.data_dir / "api-key").read_text().strip()
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=30)

    def processes(self, *words: str) -> list[psutil.Process]:
        """Living processes of this service whose command line has all of `words`."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                line = process.cmdline()
                mine = any(str(self.data_dir) in part for part in line) or self._descends(process)
                if mine and all(any(word in part for part in line) for word in words):
                    found.append(process)
        return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]

    def _descends(self, process: psutil.Process) -> bool:
        return self.process is not None and self.process.pid in [parent.pid for parent in process.parents()]

    def runners(self) -> list[psutil.Process]:
        """The processes of running jobs."""
        return self.processes("worker.runner")

    def kill(self) -> None:
        """SIGKILL to the server alone, as an out-of-memory killer would do it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="session")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that fit ARCHITECTURE."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(SIZES):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    path = tmp_path_factory.mktemp("network") / "mlp.safetensors"
    save_file(nn.Sequential(*layers[:-1]).state_dict(), path)
    return path


def write_dataset(path: Path, samples: int) -> Path:
    """Images that tell their category by a bright row."""
    random = np.random.default_rng(0)
    labels = np.arange(samples) % CATEGORIES
    images = random.integers(0, 100, (samples, 8, 8), dtype=np.uint8)
    images[np.arange(samples), labels] += 100
    tenth = samples // 10
    np.savez(path, x_train=images, y_train=labels, x_test=images[:tenth], y_test=labels[:tenth])
    return path


@pytest.fixture(scope="session")
def dataset_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset") / "rows.npz", 400)


@pytest.fixture(scope="session")
def long_dataset_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset") / "long.npz", 5_000)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[], str]) -> Iterator[Service]:
    """One server for all tests that do it no harm."""
    service = Service(tmp_path_factory.mktemp("service") / "data", {"DATABASE_URL": new_database()}).start()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def battered(tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[], str]) -> Iterator[Service]:
    """One server for the tests that shoot at it."""
    service = Service(tmp_path_factory.mktemp("battered") / "data", {"DATABASE_URL": new_database()})
    yield service
    service.stop()


@pytest.fixture
def own_service(battered: Service) -> Service:
    """The battered server, running and with nothing to do."""
    if battered.process is None or battered.process.poll() is not None:
        battered.start()
    assert battered.runners() == []
    return battered


def upload(client: Client, network: Path, dataset: Path) -> dict[str, Any]:
    """The ids of an uploaded model and dataset, as a job wants them."""
    model = client.upload_model(network, ARCHITECTURE, name="mlp")
    data = client.upload_dataset(dataset, {"preprocess": {"scale": 1 / 255}}, name="rows")
    return {"model_id": model["id"], "dataset_id": data["id"]}


def long_job(service: Service, client: Client, network: Path, dataset: Path) -> dict[str, Any]:
    """A slice job that runs for some seconds, reporting progress. Its inputs are uploaded once to each service.

    Each has a seed of its own, so that none finds the analysis of another.
    """
    service.uploaded = service.uploaded or upload(client, network, dataset)
    return {"kind": "slice", **service.uploaded, "seed": next(SEEDS), "batch_size": 1}


def run_until(client: Client, job: dict[str, Any], fraction: float, timeout_s: float = 60) -> dict[str, Any]:
    """The job once it is running and at least that far."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        job = client.get(job["links"]["self"], wait=5, after=job["last_event"])
        if job["status"] == "running" and job["progress"] and job["progress"]["fraction"] >= fraction:
            return job
        assert job["status"] in ("queued", "running"), json.dumps(job, indent=1)
    raise AssertionError(f"the job did not get to {fraction}: {json.dumps(job, indent=1)}")
