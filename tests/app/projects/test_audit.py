"""Who changed what."""

import time
from datetime import UTC, datetime, timedelta
from threading import Event, Thread

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from app.db import Database
from app.ids import first_id
from app.jobs.queue import LocalQueue
from app.projects.audit import Actor, AuditFilter, act_as, audit_rows, forget_old_changes, record
from app.projects.directory import ensure_project, find_project, set_limits
from app.projects.keys import create_key, revoke_key
from app.projects.orm import AuditRow
from app.settings import Settings
from worker.maintenance import maintain


def test_a_change_that_is_rolled_back_leaves_no_row(database: Database) -> None:
    with database.transaction() as session:
        create_key(session, project="p", name="")
        session.rollback()
    with database.transaction() as session:
        assert session.scalars(select(AuditRow)).all() == []


@pytest.mark.parametrize("change", ["UPDATE audit_log SET actor = 'nobody'", "DELETE FROM audit_log"])
def test_rows_are_never_changed(database: Database, change: str) -> None:
    with database.transaction() as session:
        ensure_project(session, "p")
    with pytest.raises(DBAPIError, match="append-only"), database.transaction() as session:
        session.execute(text(change))


def test_rows_go_once_they_are_old_and_not_before(database: Database) -> None:
    day_s, now = 24 * 3600.0, datetime.now(UTC)
    with database.transaction() as session:
        project = ensure_project(session, "p")
        for days in (1, 9, 10, 11, 400):
            at = now - timedelta(days=days, minutes=1)
            about = {"actor": "service", "action": "job.create", "object_id": str(days), "details": {}}
            session.add(AuditRow(id=first_id("aud", at.timestamp()), project_id=project, created_at=at, **about))
    with database.transaction() as session:
        session.execute(select(func.set_config("neusemslice.audit_kept", "10 days", True)))
        with pytest.raises(DBAPIError, match="append-only"):
            session.execute(text("DELETE FROM audit_log"))
        session.rollback()
    for _ in range(2):
        with database.transaction() as session:
            forget_old_changes(session, older_than_s=10 * day_s)
    with database.transaction() as session:
        of_jobs = select(AuditRow.object_id).where(AuditRow.action == "job.create").order_by(AuditRow.id)
        assert session.scalars(of_jobs).all() == ["9", "1"]
    for change in ("DELETE FROM audit_log WHERE object_id = '9'", "UPDATE audit_log SET actor = 'nobody'"):
        with pytest.raises(DBAPIError, match="append-only"), database.transaction() as session:
            session.execute(text(change))


def test_the_relay_forgets_what_is_old(database: Database, settings: Settings) -> None:
    with database.transaction() as session:
        ensure_project(session, "p")
    quick, stopping = settings.model_copy(update={"poll_s": 0.05, "audit_kept_s": 0.2}), Event()
    rounds = Thread(target=maintain, args=(quick, database, LocalQueue(database), stopping))
    rounds.start()
    deadline, rows = time.monotonic() + 30, 1
    while rows and time.monotonic() < deadline:
        time.sleep(0.05)
        with database.transaction() as session:
            rows = len(session.scalars(select(AuditRow)).all())
    stopping.set()
    rounds.join()
    assert rows == 0


def test_only_what_changes_something_is_recorded(database: Database) -> None:
    with database.transaction() as session:
        act_as(session, Actor("cli:me", address="::1"))
        key_id = create_key(session, project="p", name="").split("_")[1]
        ensure_project(session, "p")
        revoke_key(session, key_id)
        revoke_key(session, key_id)
        project = find_project(session, "p")
        set_limits(session, project, {"max_queued_jobs": 3})
        set_limits(session, project, {"max_queued_jobs": 3})
    with database.transaction() as session:
        rows = session.scalars(select(AuditRow)).all()
        assert sorted(row.action for row in rows) == [
            "key.create",
            "key.revoke",
            "project.create",
            "project.set_limits",
        ]
        assert {(row.actor, row.address) for row in rows} == {("cli:me", "::1")}


def test_rows_are_found_by_what_is_known_of_them(database: Database) -> None:
    with database.transaction() as session:
        first, second = ensure_project(session, "first"), ensure_project(session, "second")
        for number in range(5):
            record(session, first, "job.create", f"job_{number}")
        session.flush()

        def found(before: str | None = None, **wanted: object) -> list[str]:
            rows = audit_rows(session, AuditFilter(**wanted), before=before, limit=3)
            return [row.object_id for row in rows]

        assert found(project_id=second) == [second]
        assert found(object_id="job_3") == ["job_3"]
        assert found(action="job.create", actor="nobody") == []
        rows = audit_rows(session, AuditFilter(action="job.create"), before=None, limit=3)
        older = audit_rows(session, AuditFilter(action="job.create"), before=rows[-1].id, limit=3)
        assert sorted(row.object_id for row in (*rows, *older)) == [f"job_{number}" for number in range(5)]
        assert found(since=rows[0].created_at.replace(year=2999)) == []
        assert found(until=rows[0].created_at.replace(year=1999)) == []
