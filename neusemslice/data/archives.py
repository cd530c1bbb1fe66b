"""Walks the files of .zip, .tar and .tar.gz archives of strangers: all names and sizes checked, nothing extracted."""

import gzip
import io
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, cast

from neusemslice.data.limits import ImportLimits
from neusemslice.errors import DatasetError
from neusemslice.zip_file import DAMAGED_ZIP, open_zip

_DAMAGED_TAR = (
    tarfile.TarError,
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
_BLOCK = 512
_UNSAFE_NAME = re.compile(r"[\\\x00-\x1f\ud800-\udfff]|^/|^[A-Za-z]:|(^|/)\.\.(/|$)")
_AGAIN = "Make the archive again."


@dataclass(frozen=True)
class ArchiveFile:
    """One regular file: its path without empty or "." parts, how to read it now, and how far the walk is."""

    name: str
    read: Callable[[], bytes]
    done: int
    total: int


def walk_archive(path: Path, limits: ImportLimits) -> Iterator[ArchiveFile]:
    """The regular files of an archive in its own order; `read` works until the next one is asked for.

    Raises:
        DatasetError: the archive is damaged, too large or too well packed, or an entry is a link, a device, encrypted,
            or named as if to leave the archive.
    """
    with path.open("rb") as file:
        packed = file.read(2)
    return _walk_zip(path, limits) if packed == b"PK" else _walk_tar(path, limits, compressed=packed == b"\x1f\x8b")


def check_zip_sizes(archive: zipfile.ZipFile, path: Path, limits: ImportLimits) -> None:
    """Check encryption, compression methods, and the sizes a zip's directory claims; more than those is never unpacked.

    Raises:
        DatasetError: an entry is encrypted or of a rare compression, or the total or the ratio is too large.
    """
    for entry in archive.infolist():
        if entry.flag_bits & 0x41:
            raise DatasetError(
                f"Entry {entry.filename!r:.200} is encrypted.", hint="Make the archive without a password."
            )
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DatasetError(
                f"Entry {entry.filename!r:.200} has compression method {entry.compress_type}.",
                hint="Use deflate or none.",
            )
    _check_total(sum(entry.file_size for entry in archive.infolist()), path.stat().st_size, limits)


def _check_total(unpacked: int, packed: int, limits: ImportLimits) -> None:
    if unpacked > limits.max_uncompressed_bytes:
        raise DatasetError(
            f"The archive unpacks to {unpacked:,} bytes or more.",
            hint=f"At most {limits.max_uncompressed_bytes:,} are accepted.",
        )
    if unpacked > limits.ratio_free_bytes and unpacked > limits.max_ratio * packed:
        raise DatasetError(
            f"The archive's {packed:,} bytes unpack to {unpacked:,} or more.",
            hint=f"At most {limits.max_ratio} times its size is accepted.",
        )


def _check_entry(name: str, size: int, limits: ImportLimits) -> str:
    """The entry's path without empty and "." parts."""
    if not name or _UNSAFE_NAME.search(name):
        raise DatasetError(f"Entry {name!r:.200} has an unsafe name.", hint="Use relative paths with forward slashes.")
    if not 0 <= size <= limits.max_entry_bytes:
        raise DatasetError(
            f"Entry {name!r:.200} has {size:,} bytes.", hint=f"At most {limits.max_entry_bytes:,} a file are accepted."
        )
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _walk_zip(path: Path, limits: ImportLimits) -> Iterator[ArchiveFile]:
    with open_zip(path, limits.max_entries, DatasetError) as archive:
        check_zip_sizes(archive, path, limits)
        entries = archive.infolist()
        for number, entry in enumerate(entries):
            name = _check_entry(entry.filename, entry.file_size, limits)
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DatasetError(f"Entry {entry.filename!r:.200} is a link or device.", hint="Archive plain files.")
            if not entry.is_dir():
                yield ArchiveFile(name, partial(_read_zip_entry, archive, entry), number, len(entries))


def _read_zip_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(entry)
    except DAMAGED_ZIP as error:
        raise DatasetError(f"Entry {entry.filename!r:.200} is damaged: {error}.", hint=_AGAIN) from error


class _ForwardReader:
    """What tarfile may do with an untrusted file: go forward, within the limits, in pieces that fit in memory.

    tarfile would follow a negative size backwards for ever, and read a header of any size at once.
    """

    def __init__(self, file: io.BufferedIOBase, packed: int, limits: ImportLimits) -> None:
        self._file = file
        self._packed = packed
        self._limits = limits
        self.last = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._limits.max_entry_bytes + _BLOCK:
            raise tarfile.ReadError(f"a header asks for {size:,} bytes")
        self._check(self._file.tell() + size)
        self.last = self._file.read(size)
        return self.last

    def seek(self, position: int) -> int:
        if position < self._file.tell():
            raise tarfile.ReadError("a header points backwards")
        self._check(position)
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()

    def _check(self, position: int) -> None:
        _check_total(position, self._packed, self._limits)


def _walk_tar(path: Path, limits: ImportLimits, *, compressed: bool) -> Iterator[ArchiveFile]:
    packed = path.stat().st_size
    with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) if compressed else nullcontext(raw) as file:
        reader = _ForwardReader(file, packed, limits)
        try:
            archive = tarfile.TarFile(fileobj=cast(IO[bytes], reader))
        except _DAMAGED_TAR as error:
            raise DatasetError(f"The tar archive is damaged: {error}.", hint=_AGAIN) from error
        number = 0
        while (entry := _next_tar_entry(archive)) is not None:
            number += 1
            if number > limits.max_entries:
                raise DatasetError(f"The archive has more than {limits.max_entries:,} entries.", hint="Split it.")
            name = _check_entry(entry.name, entry.size, limits)
            if not (entry.isreg() or entry.isdir()) or entry.issparse():
                raise DatasetError(
                    f"Entry {entry.name!r:.200} is a link, device or sparse file.", hint="Archive plain files."
                )
            if entry.isreg():
                yield ArchiveFile(name, partial(_read_tar_entry, archive, entry), raw.tell(), packed)
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile would remember every entry
        if reader.last.count(0) != _BLOCK:
            raise DatasetError("The tar archive ends in the middle.", hint=_AGAIN)
        _read_padding(reader)


def _next_tar_entry(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return archive.next()
    except _DAMAGED_TAR as error:
        raise DatasetError(f"The tar archive is damaged: {error}.", hint=_AGAIN) from error


def _read_padding(reader: _ForwardReader) -> None:
    """Reach the end of the file, where gzip compares its checksum."""
    try:
        while reader.read(_BLOCK * 128):
            pass
    except _DAMAGED_TAR as error:
        raise DatasetError(f"The tar archive is damaged: {error}.", hint=_AGAIN) from error


def _read_tar_entry(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    try:
        stream = archive.extractfile(entry)
        assert stream is not None  # it is a regular file
        return stream.read()
    except _DAMAGED_TAR as error:
        raise DatasetError(f"Entry {entry.name!r:.200} is damaged: {error}.", hint=_AGAIN) from error
