"""No list, no filter and no other statement that runs often reads a whole table.

Postgres itself is asked, on tables of thousands of rows, of which a project has a small share.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.artifacts.catalog import Catalog
from app.artifacts.orm import DatasetRow, ModelRow
from app.db import Database
from app.jobs import leases
from app.jobs.deadlines import end_overdue
from app.jobs.events import events_after, transitions
from app.jobs.filters import JobFilter
from app.jobs.logs import log_of
from app.jobs.orm import JobRow
from app.jobs.outlook import take_picture
from app.jobs.queue import reannounce_stale, relay_outbox
from app.jobs.reaper import reap
from app.jobs.service import JobService
from app.jobs.status import JobStatus
from app.projects.audit import AuditFilter, audit_rows
from app.projects.keys import keys_of
from app.settings import Settings
from app.webhooks.service import WebhookService
from tests.app.jobs.plans import JOB, PROJECT, PROJECTS, ROWS, WEBHOOK, check, explained, fill

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def filled(new_database: Callable[[], str]) -> Iterator[Database]:
    database = Database(new_database())
    fill(database)
    yield database
    database.dispose()


def service(session: Session) -> JobService:
    return JobService(session, PROJECT, max_attempts=3)


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
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"model_id": "mdl_3"},
        {"metadata": {"run": "3"}},
        {"created_after": NOW - timedelta(hours=1)},
        {"created_before": NOW - timedelta(days=3)},
        {"created_after": NOW - timedelta(days=3), "created_before": NOW - timedelta(days=2)},
    ],
    ids=lambda more: " ".join(more) or "-",
)
def test_listing_jobs(
    filled: Database, status: JobStatus | None, kind: str | None, before: str | None, more: dict[str, Any]
) -> None:
    with explained(filled) as plans, filled.transaction() as session:
        rows = service(session).list(before=before, limit=51, wanted=JobFilter(status=status, kind=kind, **more))
        service(session).artifacts_of(rows)
    check(plans)


def test_every_condition_on_jobs_is_among_these() -> None:
    assert {field.name for field in fields(JobFilter)} == {
        *("status", "kind", "model_id", "metadata", "created_after", "created_before")
    }


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (JobFilter(metadata={"run": "7"}), "ix_jobs_metadata"),
        (JobFilter(model_id="mdl_" + "0" * 26), "ix_jobs_model"),
        (JobFilter(created_after=NOW), "ix_jobs_project_id_created_at"),
    ],
)
def test_each_condition_has_an_index_that_serves_it(filled: Database, wanted: JobFilter, index: str) -> None:
    (condition,) = wanted.conditions()[1:]
    others = "SELECT indexname FROM pg_indexes WHERE tablename = 'jobs' AND indexname NOT IN ('pk_jobs', :index)"
    with filled.transaction() as session:
        for other in session.scalars(text(others), {"index": index}).all():
            session.execute(text(f"DROP INDEX {other}"))
        session.execute(text("SET LOCAL enable_seqscan = off"))
        with explained(filled) as plans:
            session.execute(select(JobRow.id).where(JobRow.project_id == PROJECT, condition))
        session.rollback()
    assert index in plans[0]


@pytest.mark.parametrize("before", [None, "z"])
def test_listing_models_and_datasets(filled: Database, before: str | None) -> None:
    with explained(filled) as plans, filled.transaction() as session:
        for kind in (ModelRow, DatasetRow):
            assert len(Catalog(session, PROJECT).list(kind, before=before, limit=51)) == 51
    assert len(plans) == 2
    check(plans)


def test_the_lineage_of_a_model(filled: Database) -> None:
    with explained(filled) as plans, filled.transaction() as session:
        assert len(service(session).lineage(f"mdl_{JOB}")) == 1
    check(plans)


@pytest.mark.parametrize("before", [None, JOB])
def test_listing_keys(filled: Database, before: str | None) -> None:
    with explained(filled) as plans, filled.transaction() as session:
        keys_of(session, PROJECT, before=before, limit=51)
    check(plans)


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"actor": "key:x"},
        {"action": "job.create"},
        {"object_id": JOB},
        {"since": NOW - timedelta(hours=1)},
        {"until": NOW},
    ],
    ids=lambda wanted: " ".join(wanted) or "-",
)
@pytest.mark.parametrize("before", [None, f"aud_job_{ROWS // 2:026}"])
def test_listing_the_audit_log(filled: Database, wanted: dict[str, Any], before: str | None) -> None:
    with explained(filled) as plans, filled.transaction() as session:
        audit_rows(session, AuditFilter(PROJECT, **wanted), before=before, limit=51)
    check(plans)


@pytest.mark.parametrize("status", [None, "pending", "delivered"])
@pytest.mark.parametrize("before", [None, f"evt_job_{ROWS // 2:026}"])
def test_listing_webhooks_and_deliveries(
    filled: Database, settings: Settings, status: str | None, before: str | None
) -> None:
    with explained(filled) as plans, filled.transaction() as session:
        webhooks = WebhookService(session, PROJECT, settings)
        assert len(webhooks.list()) == ROWS / PROJECTS
        webhooks.deliveries(WEBHOOK, before=before, limit=51, status=status)
    check(plans)


def test_looking_at_one(filled: Database) -> None:
    with explained(filled) as plans, filled.transaction() as session:
        job = service(session).get(JOB)
        log_of(session, job.id, 1)
        service(session).artifacts_of([job])
        transitions(session, job.id)
        events_after(session, job.id, 0, limit=100)
        service(session).cancel_inspection("mdl_x")
    check(plans)


def test_the_picture_of_the_queues(filled: Database) -> None:
    with explained(filled) as plans, filled.transaction() as session:
        picture = take_picture(session)
    waiting = [ids for level in picture.levels.values() for ids in level.waiting.values()]
    assert sum(map(len, waiting)) > ROWS / 3
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
