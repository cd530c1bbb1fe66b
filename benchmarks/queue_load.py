"""The service under 10,000 queued jobs: submitting, looking, claiming.

    python -m benchmarks.queue_load [--jobs 10000] [--rate 200] [--seconds 20] [--processes 2]

The API is PROCESSES times `neusemslice serve --api-only` on an embedded Postgres, as replicas behind a proxy, which are
asked in turn; clients are a process of their own on the same cores. Requests are sent when they are due, however long
earlier ones take, and a latency counts from when its request was due. Floors, in the same run: an endpoint that touches
nothing (`/livez`) at the same rate, and a bare statement that changes one row by its key and commits. The plans of all
that the service asks often are checked in tests/app/jobs/test_query_plans.py.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from sqlalchemy import text

from app.artifacts.catalog import Catalog, NewAsset, accept
from app.artifacts.orm import DatasetRow, ModelRow
from app.artifacts.store import Blob
from app.db import Database
from app.jobs import leases
from app.jobs.status import JobStatus
from app.projects.keys import authenticate, create_key
from app.settings import Settings
from neusemslice_cli.processes import migrated_database

PROJECTS = 8
SUBMITTERS = 16
SUPERVISORS = 8
FACTS = {"input_shape": [1, 8, 8], "categories": 10}
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
SPEC = {"builder": "mlp", "kwargs": {"sizes": [64, 10]}, "input_shape": [1, 8, 8]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--submitted", type=int, help="so many over HTTP, the rest as rows; default: all")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--processes", type=int, default=2, help="API processes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), database_url=None, redis_url=None)
        with migrated_database(settings) as database, ExitStack() as stack:
            urls = [stack.enter_context(serving(settings, database)) for _ in range(options.processes)]
            projects = [prepare(database, number) for number in range(PROJECTS)]
            print(f"{os.cpu_count()} cores, {options.processes} API processes, load {os.getloadavg()[0]:.1f} before\n")
            submitted = options.jobs if options.submitted is None else options.submitted
            ids = submitting(urls, projects, submitted)
            adding(database, options.jobs - submitted)
            analyze(database)
            looking(urls, projects, ids, options)
            claiming(database, options.jobs)


def prepare(database: Database, number: int) -> dict[str, Any]:
    """A project's key and a job that it may submit."""
    with database.transaction() as session:
        key = create_key(session, project=f"project-{number}", name="load")
        catalog = Catalog(session, authenticate(session, key).project_id)
        model = catalog.add(ModelRow, NewAsset("m", SPEC, {}), Blob("a" * 64, 10))
        dataset = catalog.add(DatasetRow, NewAsset("d", {"format": "npz"}, {}), Blob("b" * 64, 10))
        for row in (model, dataset):
            accept(row, digest="c" * 64, size_bytes=20, facts=FACTS)
        return {"key": key, "job": {"kind": "slice", "model_id": model.id, "dataset_id": dataset.id}}


@contextmanager
def serving(settings: Settings, database: Database) -> Iterator[str]:
    """The API in its own process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"DATABASE_URL": database.url, "NEUSEMSLICE_DATA_DIR": str(settings.data_dir)}
    command = [sys.executable, "-m", "neusemslice_cli.main", "serve", "--port", str(port), "--api-only"]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz", timeout=5).is_success:
                    break
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


def in_own_process(client: Any, *arguments: Any) -> Any:
    """What `client(*arguments)`, a coroutine, returns in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run, (client, arguments))


def _run(client: Any, arguments: tuple[Any, ...]) -> Any:
    return asyncio.run(client(*arguments))


def submitting(urls: list[str], projects: list[dict[str, Any]], count: int) -> list[list[str]]:
    """Queue the jobs, `SUBMITTERS` at once; the ids of each project."""
    ids, took_s = in_own_process(_submit, urls, projects, count)
    print(f"submit: {count} jobs by {SUBMITTERS} clients: {count / took_s:.0f} a second\n")
    return ids


async def _submit(urls: list[str], projects: list[dict[str, Any]], count: int) -> tuple[list[list[str]], float]:
    ids: list[list[str]] = [[] for _ in projects]
    numbers, client = iter(range(count)), Connections(urls)

    async def work() -> None:
        for number in numbers:
            mine = number % len(projects)
            job = json.dumps(projects[mine]["job"] | {"seed": number})
            status, body = await client.ask("POST", "/v1/jobs", projects[mine]["key"], job)
            if status != HTTPStatus.ACCEPTED:
                raise RuntimeError(f"{status}: {body!r}")
            ids[mine].append(json.loads(body)["id"])

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(SUBMITTERS)))
    return ids, time.perf_counter() - started


class Connections:
    """Open connections to each of the API's processes, which are asked in turn.

    So small a client because it shares the cores with what it measures: httpx takes as long for a request as the API.
    """

    def __init__(self, urls: list[str]) -> None:
        self._turns = itertools.cycle(urlsplit(url).port for url in urls)
        self._free: dict[int | None, list[Connection]] = {}

    async def ask(self, method: str, path: str, key: str | None, body: str = "") -> tuple[int, bytes]:
        """The answer's status and body."""
        port = next(self._turns)
        free = self._free.setdefault(port, [])
        reader, writer = free.pop() if free else await asyncio.open_connection("127.0.0.1", port)
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"Authorization: Bearer {key}"] if key else []
        lines += ["Content-Type: application/json"] if body else []
        writer.write("\r\n".join([*lines, "", body]).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"\r\ncontent-length: (\d+)", head)
        answer = await reader.readexactly(int(length[1]) if length else 0)
        free.append((reader, writer))
        return int(head.split(b" ", 2)[1]), answer


def adding(database: Database, count: int) -> None:
    """Further queued jobs, copies of those that were submitted, each with its first event."""
    columns = "project_id, kind, queue, spec, metadata, status, attempt, attempt_limit, fence, cancel_requested"
    with database.engine.begin() as connection:
        queued = connection.execute(text("SELECT count(*) FROM jobs")).scalar_one()
        copies = f"""
            INSERT INTO jobs (id, {columns}, event_count, priority)
            SELECT 'job_7' || lpad((numbered.n * 100000 + i)::text, 25, '0'), {columns}, 1, 0
            FROM (SELECT *, row_number() OVER (ORDER BY id) AS n FROM jobs) AS numbered
            JOIN generate_series(1, :most) AS i ON (i - 1) * :queued + numbered.n <= :count
        """
        connection.execute(text(copies), {"queued": queued, "count": count, "most": 1 + count // queued})
        connection.execute(
            text("""INSERT INTO job_events (job_id, seq, type, data)
                SELECT id, 1, 'status', '{"status": "queued"}' FROM jobs WHERE id LIKE 'job_7%'""")
        )


def looking(urls: list[str], projects: list[dict[str, Any]], ids: list[list[str]], options: argparse.Namespace) -> None:
    """Latencies at a rate of requests."""
    kinds = {
        "GET /livez (floor)": [("/livez", None)],
        "GET /v1/jobs/{id}": [(f"/v1/jobs/{job}", mine) for mine, own in enumerate(ids) for job in own],
        "GET /v1/jobs?limit=20": [("/v1/jobs?limit=20", mine) for mine in range(len(projects))],
        "GET /v1/jobs (50)": [("/v1/jobs", mine) for mine in range(len(projects))],
        "GET /v1/jobs?status=failed": [("/v1/jobs?status=failed", mine) for mine in range(len(projects))],
    }
    kinds["both, half and half"] = kinds["GET /v1/jobs/{id}"][:: len(ids)] + kinds["GET /v1/jobs?limit=20"] * 100
    print(f"| {options.rate:.0f} requests a second asked for | answered a second | p50 | p99 | most | refused |")
    print("|---|---|---|---|---|---|")
    for name, targets in kinds.items():
        keys = [project["key"] for project in projects]
        latencies, refused, took_s = in_own_process(_look, urls, targets, keys, options.rate, options.seconds)
        cuts = statistics.quantiles(latencies, n=100)
        shown = " | ".join(f"{1000 * value:.1f} ms" for value in (cuts[49], cuts[98], max(latencies)))
        print(f"| {name} | {len(latencies) / took_s:.0f} | {shown} | {refused} |", flush=True)
    print()


async def _look(
    urls: list[str], targets: list[tuple[str, int | None]], keys: list[str], rate: float, seconds: float
) -> tuple[list[float], int, float]:
    choose, latencies, refused, client = random.Random(0), [], 0, Connections(urls)

    async def ask(due: float) -> None:
        nonlocal refused
        path, mine = choose.choice(targets)
        status, _ = await client.ask("GET", path, None if mine is None else keys[mine])
        latencies.append(time.perf_counter() - due)
        refused += status != HTTPStatus.OK

    for _ in range(20):
        await ask(time.perf_counter())
    latencies.clear()
    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(ask(due))
    return latencies, refused, time.perf_counter() - started


def claiming(database: Database, jobs: int) -> None:
    """Supervisors that claim and end jobs without running any, against a bare change of one row by its key."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(SUPERVISORS) as pool:
        pool.map(_nothing, [database.url] * SUPERVISORS)
        rates = {}
        for name, work in (("bare", _change_rows), ("claims", _claim_and_end)):
            started = time.perf_counter()
            done = sum(pool.starmap(work, [(database.url, jobs // SUPERVISORS // 2)] * SUPERVISORS))
            rates[name] = done / (time.perf_counter() - started)
    print(f"claim and end, {SUPERVISORS} supervisors, {PROJECTS} projects: {rates['claims']:.0f} jobs a second, two")
    print(f"transactions each; bare UPDATE by key and commit: {rates['bare']:.0f} a second ", end="")
    print(f"({2 * rates['claims'] / rates['bare']:.2f}x as many transactions)\n")


def _nothing(url: str) -> None:
    Database(url).dispose()


def _change_rows(url: str, count: int) -> int:
    database = Database(url)
    with database.engine.connect() as connection:
        ids = connection.execute(text("SELECT id FROM jobs ORDER BY random() LIMIT :count"), {"count": count}).scalars()
        for job_id in ids.all():
            connection.execute(text("UPDATE jobs SET fence = fence WHERE id = :id"), {"id": job_id})
            connection.commit()
    database.dispose()
    return count


def _claim_and_end(url: str, count: int) -> int:
    database = Database(url)
    done = 0
    for _ in range(count):
        with database.transaction() as session:
            held = leases.claim_next(session, "compute", owner=f"own_{os.getpid()}", lease_s=30)
        if held is None:
            break
        with database.transaction() as session:
            leases.close(session, held, JobStatus.SUCCEEDED)
        done += 1
    database.dispose()
    return done


def analyze(database: Database) -> None:
    """What autovacuum does by itself after a while."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


if __name__ == "__main__":
    main()
