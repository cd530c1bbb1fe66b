"""Every change of every job's status, counted. Postgres counts as the change's event is written: in the same commit.

`tally_job_transition` (a trigger, in the migrations) adds a row for each; folding sums rows that differ in number only.
A reader sums, so it sees the same numbers before, after and while others fold.
"""

from sqlalchemy import BigInteger, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.db import Base

BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0)
"""Upper bounds, in seconds, that the trigger sorts durations by; whatever is above has infinity."""

_FOLD_ABOVE = 500
_FOLD = text("""
    WITH taken AS (DELETE FROM job_tally RETURNING *)
    INSERT INTO job_tally (queue, kind, before, after, reason, code, le, count, seconds)
    SELECT queue, kind, before, after, reason, code, le, sum(count), sum(seconds) FROM taken
    GROUP BY queue, kind, before, after, reason, code, le
""")


class JobTallyRow(Base):
    """`count` changes from one status to another, of jobs alike, which had been in the first for up to `le` seconds."""

    __tablename__ = "job_tally"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    queue: Mapped[str]
    kind: Mapped[str]
    before: Mapped[str]
    """Empty for a job that is new."""
    after: Mapped[str]
    reason: Mapped[str]
    """Why, where the event says it: `retried`, `worker_lost`, `worker_stopped`, `process_died`, …"""
    code: Mapped[str]
    """Of the error, if the job failed."""
    le: Mapped[float]
    count: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]
    """How long they had been in the first status, together."""


def fold(session: Session) -> bool:
    """Sum up if many rows have come together. Any number of processes may: what one takes, no other can."""
    count = session.execute(text("SELECT count(*) FROM job_tally")).scalar_one()
    if count <= _FOLD_ABOVE:
        return False
    session.execute(_FOLD)
    return True
