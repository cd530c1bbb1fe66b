"""`/v1/audit`: who changed what in the project, for keys with the scope `admin`."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, StringConstraints

from app.api.context import Context, Cursor, Limit
from app.api.schemas.pages import Page, page
from app.jobs.specs.common import NO_NUL, Moment
from app.projects.audit import AuditFilter, audit_rows
from app.projects.orm import AuditRow

router = APIRouter(prefix="/v1/audit", tags=["audit"])

Exactly = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=NO_NUL)]


class AuditRead(BaseModel):
    """One change. `actor` is `key:<id>`, `cli:<user>`, `keyless`, or `service` for what no request asked for."""

    id: str
    at: datetime
    actor: str
    action: str
    object_id: str
    request_id: str | None
    address: str | None
    details: dict[str, Any]

    @classmethod
    def of(cls, row: AuditRow) -> "AuditRead":
        """From its row."""
        return cls(at=row.created_at, **{name: getattr(row, name) for name in cls.model_fields if name != "at"})


@router.get("", operation_id="list_audit", response_model=Page[AuditRead])
def list_audit(
    context: Context,
    actor: Annotated[Exactly | None, Query(examples=["key:0123456789ab"])] = None,
    action: Annotated[Exactly | None, Query(examples=["job.cancel"])] = None,
    object_id: Exactly | None = None,
    since: Annotated[Moment | None, Query(description="At this time or later.")] = None,
    until: Annotated[Moment | None, Query(description="Before this time.")] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[AuditRead]:
    """What was changed, newest first."""
    wanted = AuditFilter(context.principal.project_id, actor, action, object_id, since, until)
    with context.reading() as session:
        rows = audit_rows(session, wanted, before=cursor, limit=limit + 1)
        return page([AuditRead.of(row) for row in rows], [row.id for row in rows], limit)
