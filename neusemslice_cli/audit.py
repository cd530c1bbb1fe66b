"""`neusemslice audit`: who changed what."""

import json
from datetime import UTC, datetime
from typing import Annotated

import typer

from neusemslice_cli.options import DataDir, administration


def show_audit(
    project: Annotated[str | None, typer.Option(help="Only this project's.")] = None,
    actor: Annotated[str | None, typer.Option(help="Such as key:0123456789ab or cli:root.")] = None,
    action: Annotated[str | None, typer.Option(help="Such as job.cancel.")] = None,
    object_id: Annotated[str | None, typer.Option(help="What was changed.")] = None,
    since: Annotated[datetime | None, typer.Option(help="At this time (UTC) or later.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 100,
    data_dir: DataDir = None,
) -> None:
    """Who changed what, newest first: a JSON object a line."""
    from app.projects.audit import AuditFilter, audit_rows, project_names
    from app.projects.directory import find_project

    with administration(data_dir) as session:
        wanted = AuditFilter(
            project_id=None if project is None else find_project(session, project).id,
            actor=actor,
            action=action,
            object_id=object_id,
            since=None if since is None else since.replace(tzinfo=UTC),
        )
        rows = audit_rows(session, wanted, before=None, limit=limit)
        names = project_names(session, rows)
    for row in rows:
        shown = {
            "at": row.created_at.astimezone(UTC).isoformat(),
            "actor": row.actor,
            "action": row.action,
            "object_id": row.object_id,
            "project": names[row.project_id],
            "request_id": row.request_id,
            "address": row.address,
            "details": row.details,
        }
        typer.echo(json.dumps(shown))
