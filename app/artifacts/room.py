"""Whether the store can take something in."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Literal

import structlog

from app.artifacts.store import BlobStore

log = structlog.get_logger(__name__)

_NOTHING = "0" * 64
"""A digest that nothing has."""

StoreState = Literal["ok", "low on space", "not writable"]


def look_at_store(store: BlobStore, folder: Path, *, min_free_bytes: int) -> StoreState:
    """Ask the store for something, and write a little into the folder that uploads come through."""
    try:
        with suppress(LookupError):
            store.size_bytes(_NOTHING)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"room?")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        log.warning("store.not_writable", error=str(error))
        return "not writable"
    return "ok" if free >= min_free_bytes else "low on space"
