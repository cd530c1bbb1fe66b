"""What the processes of a job's attempts printed."""

from typing import Protocol

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.errors import NotFoundError
from app.jobs.orm import AttemptLogRow


class Attempt(Protocol):
    """Which attempt it is: a claim, or what is left of one."""

    @property
    def job_id(self) -> str:
        """Its job."""

    @property
    def fence(self) -> int:
        """Of its claim."""

    @property
    def attempt(self) -> int:
        """Its number, as clients see it."""


def keep_log(session: Session, of: Attempt, content: bytes) -> None:
    """Keep what the attempt's process printed, once. It belongs to this claim alone, so that no lease is needed."""
    row = {"job_id": of.job_id, "fence": of.fence, "attempt": of.attempt, "content": content}
    session.execute(insert(AttemptLogRow).values(row).on_conflict_do_nothing())


def log_of(session: Session, job_id: str, attempt: int | None) -> AttemptLogRow:
    """The log of that attempt, or of the last that has ended.

    Raises:
        NotFoundError: there is none.
    """
    query = select(AttemptLogRow).where(AttemptLogRow.job_id == job_id)
    if attempt is not None:
        query = query.where(AttemptLogRow.attempt == attempt)
    row = session.scalars(query.order_by(AttemptLogRow.fence.desc()).limit(1)).one_or_none()
    if row is None:
        which = "no attempt that has ended" if attempt is None else f"no ended attempt {attempt}"
        raise NotFoundError(
            f"The job {job_id} has {which}.", hint="A log is kept when its attempt ends; watch …/events until then."
        )
    return row
