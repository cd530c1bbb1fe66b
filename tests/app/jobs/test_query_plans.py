"""No statement that runs often reads a whole table, asked of Postgres itself on a table of thousands of rows."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.orm import Session

from app.db import Database
from app.jobs import leases
from app.jobs.deadlines import end_overdue
from app.jobs.events import events_after, transitions
from app.jobs.filters import JobFilter
from app.jobs.orm import JobRow
from app.jobs.outlook import take_picture
from app.jobs.queue import reannounce_stale, relay_outbox
from app.jobs.reaper import reap
from app.jobs.service import JobService
from app.jobs.specs import JOB_KINDS
from app.jobs.status import JobStatus

TABLES = ("jobs", "job_events", "outbox", "artifacts")
ROWS = 6000
PROJECTS = 30


@pytest.fixture(scope="module")
def filled(new_database: Callable[[], str]) -> Iterator[Database]:
    """Projects with thousands of jobs: most queued or ended, a few running, some of them abandoned."""
    database = Database(new_database())
    columns = "id, project_id, kind, queue, spec, metadata, status, attempt, attempt_limit, fence, cancel_requested"
    with database.engine.begin() as connection:
        for statement in (
            f"INSERT INTO projects (id, name) SELECT 'prj_' || i, 'p' || i FROM generate_series(0, {PROJECTS - 1}) i",
            f"""INSERT INTO jobs ({columns}, event_count, priority, lease_until, started_at, finished_at, queued_at)
                SELECT 'job_' || lpad(i::text, 26, '0'), 'prj_' || i % {PROJECTS},
                    CASE WHEN i % 10 = 0 THEN 'inspect_model' ELSE (ARRAY{list(JOB_KINDS)})[1 + i % 5] END,
                    CASE WHEN i % 10 = 0 THEN 'inspect' ELSE 'compute' END, '{{"model_id": "x"}}', '{{}}',
                    CASE WHEN i % 100 = 0 THEN 'running' WHEN i % 2 = 0 THEN 'queued' WHEN i % 3 = 0 THEN 'failed'
                        ELSE 'succeeded' END,
                    1, 3, 1, false, 2, i % 3 - 1, now() - interval '1 hour', now() - interval '1 hour',
                    CASE WHEN i % 2 = 1 THEN now() END, now() - interval '1 hour'
                FROM generate_series(1, {ROWS}) i""",
            """INSERT INTO job_events (job_id, seq, type, data)
                SELECT id, seq, CASE WHEN seq = 2 THEN 'progress' ELSE 'status' END, '{"status": "queued"}' FROM jobs,
                generate_series(1, 2) seq""",
            "INSERT INTO outbox (job_id, queue) SELECT id, queue FROM jobs",
            """INSERT INTO artifacts (id, project_id, job_id, fence, name, media_type, digest, size_bytes)
                SELECT 'art_' || id, project_id, id, 1, 'x', 'x', 'x', 1 FROM jobs""",
        ):
            connection.execute(text(statement))
        connection.execute(text("ANALYZE"))
    yield database
    database.dispose()


@contextmanager
def explained(database: Database) -> Iterator[list[str]]:
    """The plans of all statements on the tables that run in the block; what they did is to be rolled back."""
    plans: list[str] = []

    def explain(connection, cursor, statement: str, parameters, context, executemany: bool) -> None:
        if not executemany and any(re.search(rf"\b{table}\b", statement) for table in TABLES):
            with cursor.connection.cursor() as other:
                other.execute(f"EXPLAIN {statement}", parameters)
                plans.append(f"{statement}\n" + "\n".join(line for (line,) in other.fetchall()))

    event.listen(database.engine, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        event.remove(database.engine, "before_cursor_execute", explain)


def check(plans: list[str]) -> None:
    assert plans != []
    for plan in plans:
        assert not re.search(rf"Seq Scan on ({'|'.join(TABLES)})\b", plan), plan
        assert "Index" in plan or "Insert on" in plan, plan


def service(session: Session) -> JobService:
    return JobService(session, "prj_3", max_attempts=3)


@pytest.mark.parametrize("queue", ["inspect", "compute"])
def test_claiming_the_next_job(filled: Database, queue: str) -> None:
    with explained(filled) as plans, filled.engine.connect() as connection, Session(connection) as session:
        held = leases.claim_next(session, queue, owner="me", lease_s=30)
        assert held is not None
        leases.renew(session, held, lease_s=30, progress={"stage": "x"})
        leases.close(session, held, JobStatus.SUCCEEDED)
        session.rollback()
    check(plans)
    assert any("ix_jobs_queued" in plan and "ix_jobs_running" in plan for plan in plans)


@pytest.mark.parametrize("status", [None, *JobStatus])
@pytest.mark.parametrize("kind", [None, "slice"])
@pytest.mark.parametrize("before", [None, f"job_{ROWS // 2:026}"])
def test_listing(filled: Database, status: JobStatus | None, kind: str | None, before: str | None) -> None:
    with explained(filled) as plans, filled.transaction() as session:
        rows = service(session).list(before=before, limit=51, wanted=JobFilter(status=status, kind=kind))
        service(session).artifacts_of(rows)
    check(plans)


def test_looking_at_one(filled: Database) -> None:
    with explained(filled) as plans, filled.transaction() as session:
        job = service(session).get(f"job_{3:026}")
        service(session).artifacts_of([job])
        transitions(session, job.id)
        events_after(session, job.id, 0, limit=100)
        service(session).cancel_inspection("mdl_x")
    check(plans)


def test_the_picture_of_the_queues(filled: Database) -> None:
    with explained(filled) as plans, filled.transaction() as session:
        picture = take_picture(session)
    assert sum(len(ids) for projects in picture.waiting.values() for ids in projects.values()) > ROWS / 3
    (queued, *others) = plans
    assert re.search(r"ix_jobs_(queued|deadline)|Seq Scan", queued), queued  # half of this table is queued
    check(others)


class TestMaintenance:
    def test_reaping(self, filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        with explained(filled) as plans, rolled_back(filled, monkeypatch):
            assert reap(filled) > 0
        check(plans)
        assert any("ix_jobs_running" in plan for plan in plans)

    def test_ending_what_is_overdue(self, filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        with explained(filled) as plans, rolled_back(filled, monkeypatch) as session:
            ids = {"parent": f"job_{100:026}", "shard": f"job_{102:026}"}
            session.execute(text("UPDATE jobs SET queue = 'waiting', deadline = now() WHERE id = :parent"), ids)
            session.execute(text("UPDATE jobs SET parent_job_id = :parent, shard_index = 0 WHERE id = :shard"), ids)
            plans.clear()
            assert end_overdue(filled) == 1
        check(plans)

    def test_relaying(self, filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        with explained(filled) as plans, rolled_back(filled, monkeypatch):
            assert relay_outbox(filled, Broker()) > 0
        check(plans)

    def test_announcing_again(self, filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        with explained(filled) as plans, rolled_back(filled, monkeypatch) as session:
            assert reannounce_stale(filled, Broker(), older_than_s=60) == 0
            session.execute(text("DELETE FROM outbox"))
            plans.pop()
            assert reannounce_stale(filled, Broker(), older_than_s=60) > 0
        check(plans)


class Broker:
    """Takes everything."""

    def publish(self, job_id: str, queue: str) -> None:
        """See JobQueue."""

    def is_available(self) -> bool:
        """See JobQueue."""
        return True

    def has_backlog(self, queue: str) -> bool:
        """See JobQueue."""
        return False


@contextmanager
def rolled_back(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """Everything in the block is one transaction that does not come to pass."""
    with database.engine.connect() as connection, Session(connection) as session:

        @contextmanager
        def transaction() -> Iterator[Session]:
            yield session
            session.flush()

        monkeypatch.setattr(database, "transaction", transaction)
        yield session
        session.rollback()


def test_the_plans_are_seen(filled: Database) -> None:
    with explained(filled) as plans, filled.transaction() as session:
        session.scalars(select(JobRow.id).where(JobRow.spec["x"].astext == "y")).all()
    with pytest.raises(AssertionError, match="Seq Scan"):
        check(plans)
