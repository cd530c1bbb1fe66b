"""safetensors files: checked before anything is parsed, and written whole or not at all. Free of torch.

A file is 8 bytes of header length, a JSON header, then the tensors' bytes. The safetensors library refuses headers that
overlap, leave holes, or do not cover the file exactly; what is added here bounds the header before that library parses.
"""

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from neusemslice.errors import NeuSemSliceError

MAX_HEADER_BYTES = 100 * 1024**2
MAX_TENSORS = 100_000
_MAX_MAPPED_HEADER_BYTES = 16 * 1024**2
_NUMPY = {
    "BOOL": "?", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "I8": "i1", "I16": "<i2", "I32": "<i4",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8,
    "I64": 8, "U64": 8,
}  # fmt: skip
"""Bytes of a number, in the order in which the safetensors library sorts types, the last first."""


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


def map_arrays(path: Path, error: type[NeuSemSliceError]) -> dict[str, NDArray[Any]]:
    """The file's tensors as read-only arrays mapped from it, by name.

    Raises:
        error: the file is damaged, has an immense header, or a tensor of a type that numpy has not.
    """
    check_safetensors(path, error)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_MAPPED_HEADER_BYTES:
            raise error(f"The file has a header of {length:,} bytes.", hint=f"{_MAX_MAPPED_HEADER_BYTES:,} is the cap.")
        header = json.loads(file.read(length))
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _NUMPY:
            raise error(f"Tensor {name!r:.200} is {entry['dtype']}.", hint=f"Use one of {', '.join(_NUMPY)}.")
        shape = tuple(entry["shape"])
        start, end = entry["data_offsets"]
        dtype = np.dtype(_NUMPY[entry["dtype"]])
        if start == end:  # an empty map is refused by the operating system
            arrays[name] = np.empty(shape, dtype)
        else:
            arrays[name] = np.memmap(path, dtype, "r", 8 + length + start, shape)
    return arrays


def file_bytes(tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]) -> int:
    """Size of the file that safetensors writes of tensors (type and shape, by name): sorted by type and name."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    places, end = {dtype: place for place, dtype in enumerate(_WIDTHS)}, 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-places[item[1][0]], item[0])):
        start, end = end, end + math.prod(shape) * _WIDTHS[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + math.ceil(len(text) / 8) * 8 + end


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
