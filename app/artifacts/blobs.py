"""What the store has, as rows: announced before the bytes come, removed with them.

The row's lock is what keeps garbage collection and puts of the same bytes apart (docs/decisions/0018).
"""

import time

import structlog
from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.artifacts.orm import BlobRow
from app.artifacts.store import Blob
from app.db import Database

log = structlog.get_logger(__name__)

RETRY_S = 0.5


class BlobRegister:
    """Announces blobs, each in a transaction of its own; waits up to `patience_s` for a database that is away."""

    def __init__(self, database: Database, *, patience_s: float = 0.0) -> None:
        self._database = database
        self._patience_s = patience_s

    def __call__(self, blob: Blob) -> None:
        """Say that the store is about to have `blob`. What relies on it must be committed within the grace period.

        Raises:
            OperationalError: the database stays away.
        """
        give_up = time.monotonic() + self._patience_s
        while True:
            try:
                with self._database.transaction() as session:
                    announce(session, blob)
            except OperationalError as error:
                if time.monotonic() > give_up:
                    raise
                log.warning("blob.announcement_failed", error=str(error))
                time.sleep(RETRY_S)
            else:
                return


def announce(session: Session, blob: Blob) -> None:
    """See BlobRegister; waits for a removal of the same bytes to end."""
    row = insert(BlobRow).values(digest=blob.digest, size_bytes=blob.size_bytes)
    now = {"touched_at": func.clock_timestamp()}
    session.execute(row.on_conflict_do_update(index_elements=["digest"], set_=now))


def renew(session: Session, digest: str) -> bool:
    """Keep a blob through another grace period; False if the store does not have it any more."""
    query = update(BlobRow).where(BlobRow.digest == digest).values(touched_at=func.clock_timestamp())
    return session.execute(query.returning(BlobRow.digest)).scalar_one_or_none() is not None
