"""What finding out who asks, and counting the request against a limit, adds to a request.

    python -m benchmarks.request_cost

The application is called without a network, one request after the other, in turns of a hundred; a private Postgres
holds the tables. The floor is `/livez`, which asks for no key and reads no table.
"""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import structlog
from sqlalchemy import event

from app.main import create_app
from app.projects.directory import find_project, set_limits
from app.projects.keys import create_key
from app.settings import Settings
from neusemslice_cli.processes import migrated_database

TURNS = 10
IN_A_TURN = 100
LIMIT_PER_MINUTE = 60 * 200


def main() -> None:
    """Print the table."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(Path(folder)))


async def compare(folder: Path) -> None:
    """Measure every way in turn."""
    settings = Settings(data_dir=folder, database_url=None)
    with migrated_database(settings) as database:
        keys = {}
        with database.transaction() as session:
            for project in ("free", "limited"):
                keys[project] = create_key(session, project=project, name="")
            set_limits(session, find_project(session, "limited"), {"requests_per_minute": LIMIT_PER_MINUTE})
        statements = []
        event.listen(database.engine, "after_cursor_execute", lambda *_: statements.append(1))
        ways = {
            "no key, no table": ("/livez", "free", 5.0),
            "key verified in the database": ("/v1/models", "free", 0.0),
            "key known": ("/v1/models", "free", 5.0),
            "key known, 200 requests/s allowed": ("/v1/models", "limited", 5.0),
        }
        spent: dict[str, list[float]] = {way: [] for way in ways}
        sent = dict.fromkeys(ways, 0)
        for _ in range(TURNS):
            for way, (path, project, cache_s) in ways.items():
                app = create_app(settings.model_copy(update={"key_cache_s": cache_s}), database)
                async with (
                    app.router.lifespan_context(app),
                    httpx.AsyncClient(
                        transport=httpx.ASGITransport(app),
                        base_url="http://127.0.0.1",
                        headers={"Authorization": f"Bearer {keys[project]}"},
                    ) as client,
                ):
                    await client.get(path)
                    before = len(statements)
                    for _ in range(IN_A_TURN):
                        started = time.perf_counter()
                        answer = await client.get(path)
                        spent[way].append(time.perf_counter() - started)
                        answer.raise_for_status()
                    sent[way] += len(statements) - before
    known = statistics.median(spent["key known"])
    print("| request | median | to `key known` | SQL statements a request |")
    print("|---|---|---|---|")
    for way, times in spent.items():
        median = statistics.median(times)
        a_request = sent[way] / (TURNS * IN_A_TURN)
        print(f"| {way} | {median * 1000:.2f} ms | {median / known:.2f}x | {a_request:.2f} |")


if __name__ == "__main__":
    main()
