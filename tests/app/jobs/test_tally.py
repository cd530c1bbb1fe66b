"""The tally is the events, counted: whoever wrote them, whatever is folded meanwhile."""

import importlib
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from sqlalchemy import select, text

from app.db import Database
from app.jobs import completion, leases, tally
from app.jobs.events import STATUS
from app.jobs.orm import JobEventRow
from app.jobs.problems import problem
from app.jobs.reaper import reap
from app.jobs.service import JobService
from app.jobs.tally import JobTallyRow
from tests.claims import claim_job


def counted(database: Database) -> Counter[tuple[str, str, str, str]]:
    """The tally's changes: before, after, reason, code."""
    changes: Counter[tuple[str, str, str, str]] = Counter()
    with database.transaction() as session:
        for row in session.scalars(select(JobTallyRow)):
            assert (row.queue, row.kind) == ("compute", "slice")
            assert row.seconds <= row.le * row.count
            changes[row.before, row.after, row.reason, row.code] += row.count
    return changes


def told(database: Database) -> Counter[tuple[str, str]]:
    """The same from the events themselves: before, after."""
    changes: Counter[tuple[str, str]] = Counter()
    with database.transaction() as session:
        events = select(JobEventRow).where(JobEventRow.type == STATUS).order_by(JobEventRow.job_id, JobEventRow.seq)
        before: dict[str, str] = {}
        for event in session.scalars(events):
            changes[before.get(event.job_id, ""), event.data["status"]] += 1
            before[event.job_id] = event.data["status"]
    return changes


def claim(database: Database, job_id: str, lease_s: float = 60) -> leases.Claim:
    with database.transaction() as session:
        return claim_job(session, job_id, owner="own_1", lease_s=lease_s)


def fail(database: Database, job_id: str, code: str) -> None:
    held = claim(database, job_id)
    with database.transaction() as session:
        completion.fail(session, held, problem(code, "It did not work."))


def test_each_change_of_status_counts_once_with_its_reason(
    database: Database, project: str, submit: Callable[[], str]
) -> None:
    failed, cancelled, lost = (submit() for _ in range(3))
    fail(database, failed, "out_of_memory")
    with database.transaction() as session:
        JobService(session, project, max_attempts=3).cancel(cancelled)
    claim(database, lost, lease_s=-1)
    reap(database)
    with database.transaction() as session:
        JobService(session, project, max_attempts=3).retry(failed)
    with database.transaction() as session:
        leases.give_back(session, claim(database, failed), reason="worker_fault: No space left", refund=True)
    assert counted(database) == {
        ("", "queued", "", ""): 3,
        ("queued", "running", "", ""): 3,
        ("running", "failed", "", "out_of_memory"): 1,
        ("failed", "queued", "retried", ""): 1,
        ("queued", "cancelled", "", ""): 1,
        ("running", "queued", "worker_lost", ""): 1,
        ("running", "queued", "worker_fault", ""): 1,
    }


def test_what_is_rolled_back_does_not_count(database: Database, submit: Callable[[], str]) -> None:
    held = claim(database, submit())
    with database.transaction() as session:
        completion.cancel(session, held)
        session.flush()
        session.rollback()
    assert counted(database) == {("", "queued", "", ""): 1, ("queued", "running", "", ""): 1}


def test_durations_are_sorted_by_their_bounds(database: Database, submit: Callable[[], str]) -> None:
    job_id = submit()
    with database.transaction() as session:
        session.execute(text("UPDATE job_events SET at = at - interval '40 seconds'"))
    claim(database, job_id)
    with database.transaction() as session:
        waited = session.scalars(select(JobTallyRow).where(JobTallyRow.after == "running")).one()
        bounds = set(session.scalars(text(f"SELECT tally_bound(b) FROM unnest(ARRAY{list(tally.BOUNDS_S)}) b")))
        assert session.scalar(text("SELECT tally_bound(1e9)")) == float("inf")
    assert (waited.le, int(waited.seconds)) == (60.0, 40)
    assert bounds == set(tally.BOUNDS_S)


def test_four_folders_at_once_lose_nothing_while_jobs_go_on(
    database: Database, submit: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "_FOLD_ABOVE", 3)
    folds: list[bool] = []
    done: list[str] = []
    enough = threading.Event()

    def fold_on() -> None:
        while not enough.is_set():
            with database.transaction() as session:
                folds.extend([True] if tally.fold(session) else [])

    def work_on() -> None:
        while not enough.is_set():
            job_id = submit()
            fail(database, job_id, "invalid_checkpoint")
            done.append(job_id)

    threads = [threading.Thread(target=target) for target in (fold_on, fold_on, work_on, work_on)]
    for thread in threads:
        thread.start()
    patience = time.monotonic() + 60
    while (len(folds) <= 5 or len(done) <= 5) and time.monotonic() < patience:
        time.sleep(0.01)
    enough.set()
    for thread in threads:
        thread.join()
    assert len(folds) > 5
    assert len(done) > 5
    assert {key[:2]: count for key, count in counted(database).items()} == told(database)
    assert counted(database)["running", "failed", "", "invalid_checkpoint"] == len(done)


def test_a_database_from_before_is_counted_as_it_is_migrated(database: Database, submit: Callable[[], str]) -> None:
    fail(database, submit(), "internal_error")
    submit()
    with database.transaction() as session:
        session.execute(text("DELETE FROM job_tally"))
        session.execute(text(importlib.import_module("migrations.versions.0007_operations")._FORMER))
    assert {key[:2]: count for key, count in counted(database).items()} == told(database)
