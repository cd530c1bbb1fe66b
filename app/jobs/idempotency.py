"""A POST that carries an Idempotency-Key takes effect once, however often it is sent.

The key's row is written in the request's own transaction. A second request with the same key blocks on that row until
the first commits (then it gets the first one's answer) or rolls back (then it goes ahead itself).
"""

from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db import JsonObject
from app.errors import KeyReusedError
from app.jobs.orm import IdempotencyRow


def recall(session: Session, project_id: str, key: str, fingerprint: str) -> JsonObject | None:
    """The answer that an earlier request with this key got; None if this is the first.

    Raises:
        KeyReusedError: the earlier request asked for something else.
    """
    row = {"project_id": project_id, "key": key, "fingerprint": fingerprint}
    inserted = session.execute(
        insert(IdempotencyRow).values(row).on_conflict_do_nothing().returning(IdempotencyRow.key)
    )
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
