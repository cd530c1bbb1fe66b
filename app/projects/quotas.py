"""A project's limits, held still while something is weighed against them."""

from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.projects.orm import ProjectRow

Counted = Literal["max_queued_jobs", "max_stored_bytes"]


def hold_limit(session: Session, project_id: str, limit: Counted) -> int | None:
    """The limit; None if there is none.

    If there is one, transactions that weigh something against a limit of the same project wait for this one to end, so
    that two cannot take the same room.
    """
    column = getattr(ProjectRow, limit)
    query = select(column).where(ProjectRow.id == project_id)
    most: int | None = session.execute(query).scalar_one()
    if most is not None:
        most = session.execute(query.with_for_update(key_share=True)).scalar_one()
    return most
