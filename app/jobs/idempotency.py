"""A POST that carries an Idempotency-Key takes effect once, however often it is sent.

The key's row is written in the request's own transaction. A second request with the same key waits for that row for a
moment: the first commits (then it gets the first one's answer), rolls back (then it goes ahead itself), or takes longer
(then it is refused, and may come again).
"""

from psycopg.errors import LockNotAvailable
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.db import JsonObject
from app.errors import KeyInFlightError, KeyReusedError
from app.jobs.orm import IdempotencyRow

PATIENCE_MS = 2000
"""So long a request waits for an earlier one with the same key; each that waits holds a thread and a connection."""


def recall(session: Session, project_id: str, key: str, fingerprint: str) -> JsonObject | None:
    """The answer that an earlier request with this key got; None if this is the first.

    Raises:
        KeyReusedError: the earlier request asked for something else.
        KeyInFlightError: the earlier request has not been answered yet.
    """
    row = {"project_id": project_id, "key": key, "fingerprint": fingerprint}
    claim = insert(IdempotencyRow).values(row).on_conflict_do_nothing().returning(IdempotencyRow.key)
    try:
        _wait_at_most(session, PATIENCE_MS)
        inserted = session.execute(claim)
        _wait_at_most(session, 0)
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable):
            raise
        raise KeyInFlightError(
            f"The first request with the Idempotency-Key {key!r} is still under way.",
            hint="Send it again in a moment, with the same key.",
        ) from error
    if inserted.scalar_one_or_none() is not None:
        return None
    earlier = session.get_one(IdempotencyRow, (project_id, key))
    if earlier.fingerprint != fingerprint:
        raise KeyReusedError(
            f"The Idempotency-Key {key!r} was used for another request.",
            hint="Use a new key for a new request, and the same key only to repeat one.",
        )
    return earlier.answer


def remember(session: Session, project_id: str, key: str, answer: JsonObject) -> None:
    """Keep the answer for repetitions."""
    query = update(IdempotencyRow).where(IdempotencyRow.project_id == project_id, IdempotencyRow.key == key)
    session.execute(query.values(answer=answer))


def _wait_at_most(session: Session, ms: int) -> None:
    """For locks, in this transaction; 0 is for ever."""
    session.execute(select(func.set_config("lock_timeout", str(ms), True)))
