"""How long after its submission a job's own code runs: forked from the zygote, and started from scratch.

Everything is real: an HTTP request, Postgres, the dispatcher that a notification wakes, the job's process. The end is
the first report of the job's own code (`slice`, which needs torch), as it arrives on the pipe.
"""

import io
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import numpy as np
import structlog
import torch
import uvicorn
from safetensors.torch import save

from app.artifacts.stores import make_store
from app.db import Database
from app.embedded_postgres import database_url
from app.main import create_app
from app.migrations import migrate
from app.settings import Settings
from worker.child import Launch, start_from_scratch
from worker.dispatcher import _dispatch
from worker.launched import Launched
from worker.supervisor import Supervisor
from worker.warm_start import WarmStart

SIZES = [64, 32, 4]
JOBS = {"warm": 20, "cold": 6}
STEPS = ("answered", "claimed", "launching", "launched", "running")


class Stamps:
    """When what happened to the job that is under way, in milliseconds since its submission began."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._began = time.perf_counter()
        self.times: dict[str, float] = {}
        self.is_running = Event()

    def take(self, name: str) -> None:
        self.times.setdefault(name, 1000 * (time.perf_counter() - self._began))
        if name == "running":
            self.is_running.set()

    def from_log(self, _: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        if event["event"] == "job.started":
            self.take("claimed")
        raise structlog.DropEvent


def watched(launch: Launch, stamps: Stamps) -> Launch:
    """The same, noting when the first report arrives and passing everything on."""

    def watch(root: Path, environment: dict[str, str], log: int, pipe: int) -> Launched:
        stamps.take("launching")
        reading, writing = os.pipe()
        passing_on = os.dup(pipe)
        try:
            process = launch(root, environment, log, writing)
        finally:
            os.close(writing)
        stamps.take("launched")
        Thread(target=pass_on, args=(reading, passing_on)).start()
        return process

    def pass_on(reading: int, writing: int) -> None:
        with os.fdopen(reading, "rb", buffering=0) as source, os.fdopen(writing, "wb", buffering=0) as target:
            while chunk := source.read(65536):
                stamps.take("running")
                target.write(chunk)

    return watch


@contextmanager
def served(settings: Settings, database: Database) -> Iterator[httpx.Client]:
    """The API in a thread, and a client of it."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings, database), port=0, log_config=None))
    thread = Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def dispatched(settings: Settings, database: Database, launch: Launch) -> Iterator[None]:
    """The local worker in a thread."""
    stopping = Event()
    supervisor = Supervisor(settings, database, make_store(settings, database), launch=launch)
    thread = Thread(target=_dispatch, args=(settings, database, supervisor, stopping, ["inspect", "compute"]))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def upload(client: httpx.Client) -> dict[str, str]:
    """A small network and dataset, inspected."""
    layers = [torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)]
    spec = {"builder": "mlp", "kwargs": {"sizes": SIZES}, "input_shape": [1, 8, 8]}
    weights = save(torch.nn.Sequential(*layers).state_dict())
    stream, labels = io.BytesIO(), np.arange(80) % 4
    images = np.zeros((80, 8, 8), dtype=np.uint8)
    np.savez(stream, x_train=images, y_train=labels, x_test=images, y_test=labels)
    ids = {}
    for name, content, described in (("model", weights, spec), ("dataset", stream.getvalue(), {})):
        form = {"spec": json.dumps(described)}
        made = client.post(f"/v1/{name}s", data=form, files={"file": content}).raise_for_status().json()
        wait_for_end(client, f"/v1/{name}s/{made['id']}")
        ids[f"{name}_id"] = made["id"]
    return ids


def wait_for_end(client: httpx.Client, address: str) -> None:
    while True:
        state = client.get(address, params={"wait": 30}).raise_for_status().json()
        if state["status"] not in ("processing", "queued", "running"):
            if state["status"] not in ("ready", "succeeded", "cancelled"):
                raise SystemExit(json.dumps(state, indent=1))
            return


def measure(client: httpx.Client, stamps: Stamps, ids: dict[str, str], seeds: range) -> list[dict[str, float]]:
    """The stamps of one job after another; each is cancelled once it runs."""
    taken = []
    for seed in seeds:
        job = {"kind": "slice", **ids, "seed": seed}
        stamps.begin()
        answer = client.post("/v1/jobs", json=job).raise_for_status().json()
        stamps.take("answered")
        stamps.is_running.wait(120)
        client.post(answer["links"]["cancel"]).raise_for_status()
        wait_for_end(client, answer["links"]["self"])
        taken.append(stamps.times)
    return taken


def main() -> None:
    stamps = Stamps()
    structlog.configure(processors=[stamps.from_log])
    found = {}
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        settings = Settings(data_dir=folder, database_url=None, keyless=True, job_threads=1)
        opened.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        database = Database(opened.enter_context(database_url(settings)))
        opened.callback(database.dispose)
        migrate(database)
        client = opened.enter_context(served(settings, database))
        warm = opened.enter_context(WarmStart(settings.job_threads))
        warm.wait_until_ready(120)
        with dispatched(settings, database, watched(warm, stamps)):
            ids = upload(client)
            found["warm"] = measure(client, stamps, ids, range(JOBS["warm"]))
        warm.close()
        with dispatched(settings, database, watched(start_from_scratch, stamps)):
            found["cold"] = measure(client, stamps, ids, range(100, 100 + JOBS["cold"]))
    print("| ms after the submission began, median | " + " | ".join(STEPS) + " | slowest |")
    print("|---|" + "---:|" * (len(STEPS) + 1))
    for name, taken in found.items():
        medians = [statistics.median(times[step] for times in taken) for step in STEPS]
        slowest = max(times["running"] for times in taken)
        print(f"| {name}, {len(taken)} jobs | " + " | ".join(f"{value:.0f}" for value in [*medians, slowest]) + " |")
    warm_ms, cold_ms = (statistics.median(times["running"] for times in found[name]) for name in ("warm", "cold"))
    print(f"\nFrom scratch takes {cold_ms / warm_ms:.1f} times as long.")


if __name__ == "__main__":
    main()
