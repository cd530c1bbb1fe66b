"""Who changed what: one row for each change, in the change's own transaction. Rows are never changed; old ones go."""

import os
import pwd
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from app.ids import first_id, new_id
from app.projects.orm import AuditRow, ProjectRow

_ACTOR = "actor"


@dataclass(frozen=True)
class Actor:
    """Who works in a transaction, and for which request."""

    name: str
    request_id: str | None = None
    address: str | None = None


SERVICE = Actor("service")
"""What no request asked for."""


@dataclass(frozen=True)
class AuditFilter:
    """Which rows are wanted; what is None does not matter."""

    project_id: str | None = None
    actor: str | None = None
    action: str | None = None
    object_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def command_line_actor() -> Actor:
    """Whoever runs this process, by the operating system's account."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return Actor(f"cli:{name}")


def act_as(session: Session, actor: Actor) -> None:
    """Everything recorded in this session from now on was done by `actor`."""
    session.info[_ACTOR] = actor


def record(session: Session, project_id: str, action: str, object_id: str, **details: Any) -> None:
    """Add the row of a change; it is kept if and only if the change is. `details` are JSON values without secrets."""
    actor: Actor = session.info.get(_ACTOR, SERVICE)
    session.add(
        AuditRow(
            id=new_id("aud"),
            project_id=project_id,
            actor=actor.name,
            action=action,
            object_id=object_id,
            request_id=actor.request_id,
            address=actor.address,
            details=details,
        )
    )


def audit_rows(session: Session, wanted: AuditFilter, *, before: str | None, limit: int) -> Sequence[AuditRow]:
    """At most `limit` of the wanted rows, newest first, older than the one called `before`."""
    query = select(AuditRow).where(*_conditions(wanted))
    if before is not None:
        query = query.where(AuditRow.id < before)
    return session.scalars(query.order_by(AuditRow.id.desc()).limit(limit)).all()


def forget_old_changes(session: Session, *, older_than_s: float) -> None:
    """Remove the rows that are older. The table's trigger lets nothing else be removed."""
    session.execute(select(func.set_config("neusemslice.audit_kept", f"{older_than_s} seconds", True)))
    by_index = AuditRow.id < first_id("aud", time.time() - older_than_s)
    is_old = AuditRow.created_at < func.clock_timestamp() - timedelta(seconds=older_than_s)
    session.execute(delete(AuditRow).where(by_index, is_old))


def project_names(session: Session, rows: Sequence[AuditRow]) -> dict[str, str]:
    """The names of the projects that the rows belong to, by id."""
    query = select(ProjectRow).where(ProjectRow.id.in_({row.project_id for row in rows}))
    return {project.id: project.name for project in session.scalars(query)}


def _conditions(wanted: AuditFilter) -> list[ColumnElement[bool]]:
    conditions = [
        getattr(AuditRow, column) == value
        for column in ("project_id", "actor", "action", "object_id")
        if (value := getattr(wanted, column)) is not None
    ]
    if wanted.since is not None:
        conditions.append(AuditRow.created_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(AuditRow.created_at < wanted.until)
    return conditions
