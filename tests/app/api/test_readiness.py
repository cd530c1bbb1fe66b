"""`/readyz` tells the truth, quickly, whatever is broken behind it."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.api import readiness
from app.api.probes import Probe
from app.db import Database
from app.jobs.workers import Worker, beat
from app.main import create_app
from app.migrations import migrate, schema_state
from app.settings import Settings
from tests.app.api.conftest import serving

BOTH = Worker("own_1", "host", 1, ("inspect", "compute"), "cpu", "0.1.0", beat_s=60.0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "KEPT_S", 0.0)


@contextmanager
def asked(settings: Settings, database: Database) -> Iterator[Callable[[], tuple[int, dict[str, Any]]]]:
    app = create_app(settings, database)
    with serving(settings, database, app) as url:

        def ask() -> tuple[int, dict[str, Any]]:
            answer = httpx.get(f"{url}/readyz", timeout=20)
            return answer.status_code, answer.json()

        deadline = time.monotonic() + 10
        while not app.state.services.listener.is_connected and time.monotonic() < deadline:
            time.sleep(0.02)
        ask.end_waits = app.state.services.listener.end_waits  # type: ignore[attr-defined]
        yield ask


def test_a_whole_service_is_ready_and_one_without_workers_is_degraded(database: Database, settings: Settings) -> None:
    with asked(settings, database) as ask:
        code, found = ask()
        assert (code, found["status"], found["workers"]) == (200, "degraded", {"inspect": 0, "compute": 0})
        with database.transaction() as session:
            beat(session, BOTH)
        whole = {"database": "ok", "store": "ok", "queue": "ok", "listener": "ok"}
        assert ask() == (200, {"status": "ready", "workers": {"inspect": 1, "compute": 1}} | whole)
        ask.end_waits()
        assert ask() == (503, {"status": "draining", "workers": {"inspect": 1, "compute": 1}} | whole)


def test_a_store_that_takes_nothing_is_unavailable_and_one_that_fills_up_degraded(
    database: Database, settings: Settings
) -> None:
    with database.transaction() as session:
        beat(session, BOTH)
    with asked(settings.model_copy(update={"min_free_bytes": 2**60}), database) as ask:
        code, found = ask()
        assert (code, found["status"], found["store"]) == (200, "degraded", "low on space")
        settings.blob_dir.rename(settings.data_dir / "gone")
        code, found = ask()
        assert (code, found["status"], found["store"]) == (503, "unavailable", "not writable")


def test_a_schema_from_before_is_unavailable_and_one_from_later_is_served(
    database: Database, settings: Settings
) -> None:
    with database.transaction() as session:
        beat(session, BOTH)
        (revision,) = session.scalars(text("SELECT version_num FROM alembic_version"))
    for other, code, state in (("0001", 503, "not migrated"), ("9999", 200, "newer"), (revision, 200, "ok")):
        with database.transaction() as session:
            session.execute(text("UPDATE alembic_version SET version_num = :other"), {"other": other})
        with asked(settings, database) as ask:
            answered, found = ask()
        assert (answered, found["database"]) == (code, state)


def test_going_back_to_this_version_leaves_a_newer_database_alone(database: Database) -> None:
    with database.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    migrate(database)
    assert schema_state(database) == "newer"


def test_a_database_that_hangs_costs_patience_once_and_not_for_each_who_asks(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "PATIENCE_S", 0.3)
    monkeypatch.setattr(readiness, "KEPT_S", 60.0)
    released, looks = threading.Event(), [0]

    def hang(_: Database) -> str:
        looks[0] += 1
        released.wait(20)
        return "ok"

    monkeypatch.setattr(readiness, "schema_state", hang)
    with asked(settings, database) as ask:
        answers: list[tuple[int, dict[str, Any]]] = []
        threads = [threading.Thread(target=lambda: answers.append(ask())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {(code, found["status"], found["database"]) for code, found in answers} == {
            (503, "unavailable", "no answer")
        }
        assert (len(answers), looks) == (8, [1])
        released.set()


def test_a_probe_that_hangs_is_not_joined_by_a_second_and_answers_once_it_is_free() -> None:
    released, looks = threading.Event(), [0]

    def look() -> str:
        looks[0] += 1
        released.wait(20)
        return "found"

    async def ask_thrice() -> list[str | None]:
        probe = Probe("slow", look, patience_s=0.05)
        found = [await probe.ask(), await probe.ask()]
        released.set()
        probe._patience_s = 5.0
        return [*found, await probe.ask()]

    assert asyncio.run(ask_thrice()) == [None, None, "found"]
    assert looks == [1]


def test_a_probe_that_fails_gives_no_answer() -> None:
    assert asyncio.run(Probe("broken", lambda: 1 // 0, patience_s=5.0).ask()) is None
