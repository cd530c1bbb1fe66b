"""Copies, on one machine, of blobs of an object store: those that were used last, up to a number of bytes."""

import os
import time
from contextlib import suppress
from pathlib import Path

from app.artifacts.store import LocalBlobStore

_IN_USE_S = 60.0
"""Whoever has just asked for a file links or opens it within this time."""


class BlobCache(LocalBlobStore):
    """A local store that forgets. Other processes may use the same folder."""

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        super().__init__(root)
        self._max_bytes = max_bytes

    def find(self, digest: str) -> Path | None:
        """The local copy, if there is one."""
        path = self.path(digest)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def make_room(self, size_bytes: int) -> None:
        """Forget what was used longest ago, so that so much fits; what is in use just now stays all the same."""
        files = []
        for blob in self.blobs():
            path = self.path(blob.digest)
            with suppress(FileNotFoundError):
                files.append((path.stat().st_mtime, blob.size_bytes, path))
        over = sum(size for _, size, _ in files) + size_bytes - self._max_bytes
        for used_at, size, path in sorted(files):
            if over <= 0 or used_at > time.time() - _IN_USE_S:
                return
            path.unlink(missing_ok=True)
            over -= size
