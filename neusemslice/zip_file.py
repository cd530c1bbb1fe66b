"""Opens zip archives of strangers: the directory is bounded before it is read. Free of torch."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neusemslice.errors import NeuSemSliceError

DAMAGED_ZIP = (
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,  # what zipfile raises for a compression or a version that it does not know
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What `zipfile` raises over a false archive."""

_DIRECTORY_BYTES_PER_ENTRY = 128


class _BoundedReader(io.BufferedReader):
    """A file that refuses to read more than `limit` bytes at once: zipfile reads the whole directory in one go."""

    limit: int | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limit is not None and size is not None and size > self.limit:
            raise zipfile.BadZipFile(f"its directory claims {size:,} bytes")
        return super().read(size)


@contextmanager
def open_zip(path: Path, max_entries: int, error: type[NeuSemSliceError]) -> Iterator[zipfile.ZipFile]:
    """The archive at `path`, open for reading.

    Raises:
        error: the archive is damaged or has more than `max_entries` entries.
    """
    with path.open("rb", buffering=0) as raw, _BoundedReader(raw) as file:
        file.limit = max_entries * _DIRECTORY_BYTES_PER_ENTRY + 1024
        try:
            archive = zipfile.ZipFile(file)
        except DAMAGED_ZIP as reason:
            raise error(f"The zip archive is damaged: {reason}.", hint="Make the archive again.") from reason
        file.limit = None
        with archive:
            if len(archive.infolist()) > max_entries:
                raise error(
                    f"The zip archive has {len(archive.infolist()):,} entries.",
                    hint=f"At most {max_entries:,} are accepted.",
                )
            yield archive
