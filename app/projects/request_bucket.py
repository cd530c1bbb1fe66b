"""A project's requests as a bucket of tokens in one row, which processes draw from several at a time.

The bucket holds a minute's requests and fills at an even rate. A process draws a tenth of a second's worth, spends it
within a second without asking again, and gives back what it did not spend. So however many processes there are, over
any time they admit what the limit allows and at most one draw of each process more, for a write every tenth of a
second.
"""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.projects.keys import now_of
from app.projects.orm import RequestBucketRow

WINDOW_S = 60
DRAWS_PER_S = 10


@dataclass(frozen=True)
class Draw:
    """Tokens taken out, and what that leaves. If none could be taken, `wait_s` says when a whole draw is there."""

    taken: int
    left: float
    wait_s: float


def draw(session: Session, project_id: str, per_minute: int, *, given_back: int = 0) -> Draw:
    """Take up to a tenth of a second's requests (at least one), after giving back what an earlier draw left."""
    row = _held(session, project_id, per_minute)
    now = now_of(session)
    per_second = per_minute / WINDOW_S
    usual = max(1, int(per_second / DRAWS_PER_S))
    filled = max(0.0, (now - row.filled_at).total_seconds()) * per_second
    available = min(float(per_minute), row.tokens + filled + given_back)
    taken = min(usual, int(available))
    row.tokens, row.filled_at = available - taken, max(now, row.filled_at)
    return Draw(taken, row.tokens, 0.0 if taken else (usual - available) / per_second)


def _held(session: Session, project_id: str, per_minute: int) -> RequestBucketRow:
    """The bucket, held until the transaction ends; a new one is full."""
    query = select(RequestBucketRow).where(RequestBucketRow.project_id == project_id).with_for_update()
    row = session.scalars(query).one_or_none()
    if row is not None:
        return row
    full = {"project_id": project_id, "tokens": per_minute, "filled_at": func.clock_timestamp()}
    session.execute(insert(RequestBucketRow).values(full).on_conflict_do_nothing())
    return session.scalars(query).one()
