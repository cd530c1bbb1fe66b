"""A project's limits, held still while something is weighed against them."""

from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.projects.orm import ProjectRow

Counted = Literal["max_queued_jobs", "max_stored_bytes"]

_LOCKS = 730_198_422
"""The first half of the advisory locks of quotas; the second is a hash of the project's id."""


def hold_limit(session: Session, project_id: str, limit: Counted) -> int | None:
    """The limit; None if there is none.

    If there is one, transactions that weigh something against a limit of the same project wait for this one to end, so
    that two cannot take the same room. The project's row stays free for claims, which pass over what is locked.
    """
    query = select(getattr(ProjectRow, limit)).where(ProjectRow.id == project_id)
    most: int | None = session.execute(query).scalar_one()
    if most is not None:
        session.execute(select(func.pg_advisory_xact_lock(_LOCKS, func.hashtext(project_id))))
        most = session.execute(query).scalar_one()
    return most
