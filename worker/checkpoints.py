"""What an attempt leaves for the next one: files in a folder of its own, which the next attempt takes over.

They are moved, not shared: an attempt that goes on although its lease is lost writes into no file of its successor.
"""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,99}")
_UNFINISHED = ".tmp"


def take_over(earlier: Iterable[Path], place: Path, *, max_bytes: int) -> None:
    """Move the finished files of earlier attempts' folders, oldest first, into `place`.

    Only plain files lying directly in a folder are taken: nothing leads out of it by a link. If they have more than
    `max_bytes` together, none is, and the attempt begins anew.
    """
    found = {file.name: file for folder in earlier for file in _plain_files(folder)}
    size = sum(file.stat().st_size for file in found.values())
    if size > max_bytes:
        log.warning("job.checkpoints_too_large", size_bytes=size, max_bytes=max_bytes)
        return
    for name, file in found.items():
        file.replace(place / name)


def has_checkpoints(folder: Path) -> bool:
    """Whether there is anything to take over."""
    return next(iter(_plain_files(folder)), None) is not None


def marks(folder: Path) -> frozenset[tuple[str, int, int]]:
    """What tells this state of the folder from any other: each finished file that is replaced changes it."""
    found = ((file.name, file.stat()) for file in _plain_files(folder))
    return frozenset((name, about.st_ino, about.st_mtime_ns) for name, about in found)


def clear(folder: Path) -> bool:
    """Remove what can be taken over; whether there was any."""
    files = list(_plain_files(folder))
    for file in files:
        file.unlink()
    return bool(files)


def _plain_files(folder: Path) -> Iterable[Path]:
    if folder.is_symlink() or not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            about = entry.stat(follow_symlinks=False)
            plain = stat.S_ISREG(about.st_mode) and about.st_nlink == 1
            if plain and _NAME.fullmatch(entry.name) and not entry.name.endswith(_UNFINISHED):
                yield Path(entry.path)
