"""The bytes of unfinished uploads: a sparse file for each, in which every part has its place from the start.

Parts are written where they belong, so that nothing is copied when the last one has come. Two writers of one place, and
writers beside the one who reads it all at the end, are kept apart by a lock on that range of the file. The kernel lets
go of it when the process dies, and it holds between processes that share the folder.
"""

import errno
import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.errors import ConflictError, StorageFullError

READ_BYTES = 4 * 1024 * 1024


class PartWriter:
    """Writes one part from its beginning and knows what was written."""

    def __init__(self, file: int, start: int) -> None:
        self._file = file
        self._place = start
        self._sha256 = hashlib.sha256()

    def write(self, pieces: Sequence[bytes]) -> None:
        """Append to the part.

        Raises:
            StorageFullError: the disk is.
        """
        data = b"".join(pieces)
        self._sha256.update(data)
        rest = memoryview(data)
        while rest:
            try:
                written = os.pwrite(self._file, rest, self._place)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise no_room() from error
                raise
            self._place += written
            rest = rest[written:]

    @property
    def digest(self) -> str:
        """The SHA-256 of what was written."""
        return self._sha256.hexdigest()

    def sync(self) -> None:
        """See that the bytes are on the disk."""
        os.fdatasync(self._file)


class StagedFile:
    """A whole upload, while nobody writes into it."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self._file = file

    @property
    def size_bytes(self) -> int:
        """How long the file is; less than the upload if bytes are missing at its end."""
        return os.fstat(self._file).st_size

    def read(self, start: int, size: int) -> Iterator[memoryview]:
        """`size` bytes from `start` in pieces; each is overwritten by the next."""
        return _pieces(self._file, start, size)

    def sync(self) -> None:
        """See that the bytes are on the disk."""
        os.fsync(self._file)


class Staging:
    """The folder of unfinished uploads."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._root.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def writing(self, upload_id: str, start: int, size: int) -> Iterator[PartWriter]:
        """One part's place, for this writer alone.

        Raises:
            ConflictError: somebody else is writing there, or the upload is being completed.
        """
        with self._locked(self.path(upload_id), start, size) as file:
            yield PartWriter(file, start)

    @contextmanager
    def whole(self, upload_id: str) -> Iterator[StagedFile]:
        """All parts, with nobody writing.

        Raises:
            ConflictError: somebody is.
        """
        path = self.path(upload_id)
        with self._locked(path, 0, 0) as file:
            yield StagedFile(path, file)

    def read(self, upload_id: str, start: int, size: int) -> Iterator[memoryview]:
        """Bytes that nobody keeps from changing, in pieces; each is overwritten by the next.

        Raises:
            FileNotFoundError, EOFError: they are not there.
        """
        with self.path(upload_id).open("rb", buffering=0) as file:
            yield from _pieces(file.fileno(), start, size)

    def path(self, upload_id: str) -> Path:
        """Where the upload's bytes are while it is unfinished."""
        return self._root / upload_id

    def remove(self, upload_id: str) -> None:
        """Delete the bytes; a writer that is still there writes into nothing."""
        self.path(upload_id).unlink(missing_ok=True)

    def uploads(self) -> list[str]:
        """The ids of all uploads that have bytes here."""
        return [path.name for path in self._root.iterdir()]

    @contextmanager
    def _locked(self, path: Path, start: int, size: int) -> Iterator[int]:
        """The open file, its range locked; a size of 0 is all of it."""
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            lock = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, start, size, 0)
            try:
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
            except (BlockingIOError, PermissionError) as error:
                raise ConflictError(
                    "Bytes of this upload are being received or verified by another request.",
                    hint="Wait for its answer, or try again in a minute: a connection that is silent is given up.",
                    code="upload_busy",
                ) from error
            yield file
        finally:
            os.close(file)


def _pieces(file: int, start: int, size: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(size, READ_BYTES)))
    while size:
        got = os.preadv(file, [buffer[:size]], start)
        if got == 0:
            raise EOFError(f"the upload's file ends at {start}, {size} bytes too early")
        yield buffer[:got]
        start, size = start + got, size - got


def no_room() -> StorageFullError:
    """The refusal when the disk is full."""
    return StorageFullError(
        "The server has no room for these bytes now.", hint="Try again later, or tell its operator."
    )
