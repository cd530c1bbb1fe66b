"""safetensors files: checked before anything is parsed, and written whole or not at all. Free of torch.

A file is 8 bytes of header length, a JSON header, then the tensors' bytes. The safetensors library refuses headers that
overlap, leave holes, or do not cover the file exactly; what is added here bounds the header before that library parses.
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from neusemslice.errors import NeuSemSliceError

MAX_HEADER_BYTES = 100 * 1024**2
MAX_TENSORS = 100_000


def looks_like_safetensors(path: Path) -> bool:
    """Whether the file starts as safetensors files do: a length, then a JSON object."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{"


def check_safetensors(path: Path, error: type[NeuSemSliceError]) -> None:
    """Check sizes and the header, without reading tensors.

    Raises:
        error: the file is truncated, too long, or its header is immense or false.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise error(
                f"The file has {size:,} bytes and claims a header of {length:,} (cap: {MAX_HEADER_BYTES:,}).",
                hint="Send the file again as safetensors wrote it.",
            )
        tensors = file.read(length).count(b'"data_offsets"')
    if tensors > MAX_TENSORS:
        raise error(f"The file has {tensors:,} tensors.", hint=f"At most {MAX_TENSORS:,} are accepted.")
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as reason:
        raise error(
            f"The safetensors file is damaged: {reason}.", hint="Send the file again as safetensors wrote it."
        ) from reason


def read_json_metadata(path: Path, key: str, error: type[NeuSemSliceError]) -> Any:
    """The JSON value under `key` of the file's metadata, or None where there is no such key.

    Raises:
        error: the file is damaged, or the value is not JSON.
    """
    check_safetensors(path, error)
    with safe_open(path, framework="np") as file:
        text = (file.metadata() or {}).get(key)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise error(f"The metadata {key!r} is not JSON: {reason}.", hint="Write the file again.") from reason


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to: its file takes the place of `path` when the block ends well, and is removed otherwise."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield draft
        _flush_to_disk(draft)
        draft.replace(path)
        _flush_to_disk(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
