"""Stored bytes, found by their SHA-256. One protocol; a folder implements it."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from app.errors import TooLargeError

_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Blob:
    """What the store holds under `digest` (SHA-256, lower-case hex)."""

    digest: str
    size_bytes: int


class BlobStore(Protocol):
    """Content-addressed bytes. Putting the same bytes twice keeps them once."""

    def put_stream(self, stream: BinaryIO, *, max_bytes: int) -> Blob:
        """Store everything `stream` yields; nothing is kept if that is more than `max_bytes` (TooLargeError)."""

    def put_file(self, source: Path) -> Blob:
        """Store a file, which may be moved away."""

    def path(self, digest: str) -> Path:
        """A local file with the bytes of `digest`, for reading only."""

    def size_bytes(self, digest: str) -> int:
        """How many bytes `digest` has (LookupError if the store has lost it)."""


class LocalBlobStore:
    """Blobs as files `root/ab/abcdef…`, written beside their place, synced, then renamed into it."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._incoming = self._root / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)

    def put_stream(self, stream: BinaryIO, *, max_bytes: int) -> Blob:
        """See BlobStore."""
        handle, name = tempfile.mkstemp(dir=self._incoming)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                blob = _copy(stream, file, max_bytes)
                _sync(file)
            self._adopt(temporary, blob)
        finally:
            temporary.unlink(missing_ok=True)
        return blob

    def put_file(self, source: Path) -> Blob:
        """See BlobStore."""
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        blob = Blob(digest, source.stat().st_size)
        self._adopt(source, blob)
        return blob

    def path(self, digest: str) -> Path:
        """See BlobStore."""
        return self._root / digest[:2] / digest

    def size_bytes(self, digest: str) -> int:
        """See BlobStore."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError as error:
            raise LookupError(f"the store has lost {digest}") from error

    def _adopt(self, temporary: Path, blob: Blob) -> None:
        place = self.path(blob.digest)
        if place.exists():
            return
        place.parent.mkdir(exist_ok=True)
        temporary.chmod(0o444)
        temporary.replace(place)
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _copy(stream: BinaryIO, file: BinaryIO, max_bytes: int) -> Blob:
    sha256, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        size += len(chunk)
        if size > max_bytes:
            raise TooLargeError(f"The file has more than {max_bytes} bytes.", hint="Send a smaller file.")
        sha256.update(chunk)
        file.write(chunk)
    return Blob(sha256.hexdigest(), size)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
