"""The SHA-256 of an upload's beginning, taken while its other parts are still on their way.

Once the last part of a large file has come, only what followed the last gap is left to be read.
"""

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from threading import Lock

from app.artifacts.orm import UploadPartRow
from app.artifacts.staging import Staging
from app.db import Database


class RunningDigest:
    """Of one upload: what its first parts were when they arrived, which may not be what they are now."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0
        self._arrivals: list[datetime] = []
        self._lock = Lock()

    def advance(
        self, database: Database, staging: Staging, upload_id: str, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Read on up to the first part that has not arrived; nothing if somebody is at it already."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            while not should_stop() and self._read_next(database, staging, upload_id):
                pass
        finally:
            self._lock.release()

    def of(self, parts: Sequence[UploadPartRow]) -> "tuple[hashlib._Hash, int]":
        """A digest to go on with, and how many bytes it has seen: none if any of them have come again since."""
        with self._lock:
            if [part.received_at for part in parts[: len(self._arrivals)]] == self._arrivals:
                return self._sha256.copy(), self._size_bytes
            return hashlib.sha256(), 0

    def _read_next(self, database: Database, staging: Staging, upload_id: str) -> bool:
        """Whoever sends a part again removes its row before its first byte: the same row after reading as before
        means that the bytes were its own.
        """
        number = len(self._arrivals) + 1
        part, sha256 = _part(database, upload_id, number), self._sha256.copy()
        if part is None:
            return False
        try:
            for piece in staging.read(upload_id, self._size_bytes, part.size_bytes):
                sha256.update(piece)
        except (FileNotFoundError, EOFError):  # completed or deleted meanwhile
            return False
        after = _part(database, upload_id, number)
        if after is None or after.received_at != part.received_at:
            return False
        self._sha256 = sha256
        self._size_bytes += part.size_bytes
        self._arrivals.append(part.received_at)
        return True


def _part(database: Database, upload_id: str, number: int) -> UploadPartRow | None:
    with database.transaction() as session:
        return session.get(UploadPartRow, (upload_id, number))
