"""Stored bytes, found by their SHA-256. One protocol; a folder implements it here, S3 in app.artifacts.s3."""

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from app.errors import TooLargeError

_CHUNK = 1024 * 1024
_DIGEST = re.compile(r"[0-9a-f]{64}")


class StoreUnavailableError(OSError):
    """The object store cannot be reached now, or it refuses us; trying again later may help."""


@dataclass(frozen=True)
class Blob:
    """What the store holds under `digest` (SHA-256, lower-case hex)."""

    digest: str
    size_bytes: int


Announce = Callable[[Blob], None]
"""Called before a blob gets its place in the store (see app.artifacts.blobs)."""


class BlobStore(Protocol):
    """Content-addressed bytes. Putting the same bytes twice keeps them once.

    Any method may raise a StoreUnavailableError.
    """

    def put_stream(self, stream: BinaryIO, *, max_bytes: int) -> Blob:
        """Store everything `stream` yields; nothing is kept if that is more than `max_bytes` (TooLargeError)."""

    def put_file(self, source: Path) -> Blob:
        """Store a file, which may be moved away."""

    def adopt(self, source: Path, blob: Blob) -> None:
        """Store a file that is known to be `blob` and is on the disk; it may be moved away."""

    def path(self, digest: str) -> Path:
        """A local file with the bytes of `digest`, for reading only (LookupError if the store has lost it)."""

    def size_bytes(self, digest: str) -> int:
        """How many bytes `digest` has (LookupError if the store has lost it)."""

    def download_url(self, digest: str, *, filename: str, media_type: str) -> str | None:
        """Where anybody can download `digest` for some minutes; None if only this process can read it."""

    def blobs(self) -> Iterator[Blob]:
        """All that is stored."""

    def remove(self, digest: str) -> None:
        """Delete a blob, if it is there. Only app.jobs.garbage knows when that is right."""


class LocalBlobStore:
    """Blobs as files `root/ab/abcdef…`, written beside their place, synced, then renamed into it."""

    def __init__(self, root: Path, announce: Announce = lambda _: None) -> None:
        self._root = root.resolve()
        self._announce = announce
        self.incoming = self._root / "incoming"
        """Where files are written before they get their place."""
        self.incoming.mkdir(parents=True, exist_ok=True)

    def put_stream(self, stream: BinaryIO, *, max_bytes: int) -> Blob:
        """See BlobStore."""
        with received(stream, self.incoming, max_bytes=max_bytes) as (temporary, blob):
            self.adopt(temporary, blob)
        return blob

    def put_file(self, source: Path) -> Blob:
        """See BlobStore."""
        blob = read_blob(source)
        self.adopt(source, blob)
        return blob

    def adopt(self, source: Path, blob: Blob) -> None:
        """See BlobStore."""
        self._announce(blob)
        place = self.path(blob.digest)
        if place.exists():
            return
        place.parent.mkdir(exist_ok=True)
        try:
            _move(source, place)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with source.open("rb") as stream, received(stream, self.incoming, max_bytes=blob.size_bytes) as (near, _):
                _move(near, place)
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def path(self, digest: str) -> Path:
        """See BlobStore."""
        return self._root / digest[:2] / digest

    def size_bytes(self, digest: str) -> int:
        """See BlobStore."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError as error:
            raise LookupError(f"the store has lost {digest}") from error

    def download_url(self, digest: str, *, filename: str, media_type: str) -> None:
        """See BlobStore."""

    def blobs(self) -> Iterator[Blob]:
        """See BlobStore."""
        for path in self._root.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(FileNotFoundError):  # removed meanwhile
                if is_digest(path.name):
                    yield Blob(path.name, path.stat().st_size)

    def remove(self, digest: str) -> None:
        """See BlobStore."""
        self.path(digest).unlink(missing_ok=True)


def is_digest(name: str) -> bool:
    """Whether it can name a blob."""
    return _DIGEST.fullmatch(name) is not None


def read_blob(source: Path) -> Blob:
    """What a file is, which is on the disk afterwards."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return Blob(digest, source.stat().st_size)


@contextmanager
def received(stream: BinaryIO, folder: Path, *, max_bytes: int) -> Iterator[tuple[Path, Blob]]:
    """A stream's bytes as a temporary file in `folder`, on the disk, with what they are.

    Raises:
        TooLargeError: they are more than `max_bytes`.
    """
    handle, name = tempfile.mkstemp(dir=folder)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            blob = _copy(stream, file, max_bytes)
            file.flush()
            os.fsync(file.fileno())
        yield temporary, blob
    finally:
        temporary.unlink(missing_ok=True)


def _move(file: Path, place: Path) -> None:
    file.chmod(0o444)
    file.replace(place)


def _copy(stream: BinaryIO, file: BinaryIO, max_bytes: int) -> Blob:
    sha256, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        size += len(chunk)
        if size > max_bytes:
            raise TooLargeError(f"The file has more than {max_bytes} bytes.", hint="Send a smaller file.")
        sha256.update(chunk)
        file.write(chunk)
    return Blob(sha256.hexdigest(), size)
