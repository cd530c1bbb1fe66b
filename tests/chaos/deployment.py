"""A deployment whose processes can be killed one by one, and a client that does not give up."""

import io
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Self

import httpx
import numpy as np
import psutil
from sqlalchemy import select

from app.db import Database
from app.jobs.orm import JobRow
from app.jobs.status import JobStatus
from app.projects.keys import ensure_project
from app.settings import Settings
from app.webhooks.fanout import EVENT_TYPES
from app.webhooks.service import WebhookService
from tests.app.webhooks.receiver import Receiver
from tests.chaos import commands
from tests.chaos.failpoints import Action, Armed

PATIENCE_S = 120.0
SHORT = {"LEASE_S": "1.5", "HEARTBEAT_S": "0.1", "POLL_S": "0.2", "CANCEL_GRACE_S": "0.2", "JOB_THREADS": "1"}
SHORT |= {"WARM_START": "false"}  # inspections start faster from scratch, and a killed worker has nothing to prepare
WEBHOOKS = {"NEUSEMSLICE_WEBHOOK_ALLOW_HTTP": "1", "NEUSEMSLICE_WEBHOOK_ALLOWED_NETWORKS": '["127.0.0.1/32"]'}

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.chaos.commands"])


@dataclass
class Deployment:
    """The service's own commands on one database and data folder, each a process that a test may shoot at."""

    data_dir: Path
    database_url: str
    extra: dict[str, str] = field(default_factory=dict)
    processes: list[ForkServerProcess] = field(default_factory=list)
    port: int = 0
    receiver: Receiver | None = None
    """Is told of every event by a webhook."""

    def __post_init__(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.database = Database(self.database_url)

    @property
    def settings(self) -> Settings:
        """As the processes have them, as far as folders go."""
        return Settings(data_dir=self.data_dir)

    @property
    def log(self) -> str:
        """What all processes have printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def _log(self) -> Path:
        return self.data_dir / "all.log"

    def tell(self, receiver: Receiver) -> None:
        """Have it told of all that happens to jobs from now on."""
        self.receiver = receiver
        self.extra |= WEBHOOKS
        loopback = Settings(webhook_allow_http=True, webhook_allowed_networks=[ip_network("127.0.0.1/32")])
        with self.database.transaction() as session:
            project = ensure_project(session, "default")
            WebhookService(session, project, loopback).create(receiver.url(), EVENT_TYPES)

    def point(self, name: str, action: Action = "kill") -> Armed:
        """A point that is reached once in this deployment."""
        return Armed(name, self.data_dir / f"reached-{name}", action)

    def run(self, *arguments: str, points: tuple[Armed, ...] = (), clock_s: float = 0.0) -> ForkServerProcess:
        """Start a command of the service."""
        environment = {f"NEUSEMSLICE_{name}": value for name, value in SHORT.items()}
        environment |= {"DATABASE_URL": self.database_url, "NEUSEMSLICE_DATA_DIR": str(self.data_dir)} | self.extra
        process = _forks.Process(target=commands.run, args=(arguments, environment, self._log, points, clock_s))
        process.start()
        self.processes.append(process)
        return process

    def worker(self, *points: Armed, clock_s: float = 0.0) -> ForkServerProcess:
        """Start a worker, which is reaper and relay too."""
        return self.run("worker", "--gpus", "none", points=points, clock_s=clock_s)

    def api(self, *points: Armed) -> ForkServerProcess:
        """Start the API; it is ready some time later."""
        return self.run("serve", "--api-only", "--keyless", "--port", str(self.port), points=points)

    def submit(self, key: str) -> str:
        """Upload a dataset, which queues its inspection: the same request until it is answered. The dataset's id."""
        files = {"file": (f"{key}.npz", tiny_dataset(key))}
        headers = {"Idempotency-Key": key}
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                answer = httpx.post(
                    f"http://127.0.0.1:{self.port}/v1/datasets",
                    data={"name": key, "spec": json.dumps({"preprocess": {"scale": 0.5}})},
                    files=files,
                    headers=headers,
                    timeout=10,
                )
                if answer.status_code == 202:
                    return str(answer.json()["id"])
                assert answer.status_code in (500, 503), answer.text
            time.sleep(0.05)
        raise AssertionError(f"{key} was not taken in:\n{self.log[-4000:]}")

    def count(self, status: str) -> int:
        """How many jobs are in this state."""
        with self.database.transaction() as session:
            return len(session.scalars(select(JobRow.id).where(JobRow.status == status)).all())

    def has_ended(self, job_id: str) -> bool:
        """Whether the job is in a terminal state."""
        with self.database.transaction() as session:
            return JobStatus(session.get_one(JobRow, job_id).status).is_terminal

    def stop(self) -> None:
        """End every process, kindly where that works."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGCONT)
            process.terminate()
        for process in self.processes:
            process.join(15)
            if process.exitcode is None:
                process.kill()
                process.join()
        self.processes.clear()


class Keeper:
    """Starts a process again whenever it has ended, as an operator's supervisor would."""

    def __init__(self, starters: dict[str, Callable[[], ForkServerProcess]]) -> None:
        self._starters = starters
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep)
        self.current: dict[str, ForkServerProcess] = {name: start() for name, start in starters.items()}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._stopping.wait(0.05):
            for name, process in self.current.items():
                if process.exitcode is not None:
                    self.current[name] = self._starters[name]()


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tiny_dataset(key: str, images: int = 8) -> bytes:
    """Images of four by four, other ones for each key."""
    stream = io.BytesIO()
    random = np.random.default_rng(list(key.encode()))
    np.savez(stream, x_train=random.integers(0, 255, (images, 4, 4), dtype=np.uint8), y_train=np.arange(images) % 2)
    return stream.getvalue()


def until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:g} s in vain: {what}"
        time.sleep(0.05)


def job_processes(data_dir: Path) -> Iterator[psutil.Process]:
    """Whatever lives in a work folder of this deployment, or was started on one."""
    work = str(data_dir.resolve() / "work")
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            places = [process.cwd(), *process.cmdline()]
            if process.status() != psutil.STATUS_ZOMBIE and any(work in place for place in places):
                yield process
