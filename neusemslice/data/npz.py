"""Reads numpy's .npz: x_train, y_train, optionally x_test, y_test and class_names. Nothing pickled is ever touched.

Each array's declared shape is held against its zip entry's size before anything is allocated; inputs are streamed in
blocks of rows.
"""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from neusemslice.data.archives import check_zip_sizes
from neusemslice.data.limits import ImportLimits
from neusemslice.data.source import (
    SPLITS,
    InputLayout,
    Source,
    check_categories,
    check_labels,
    check_pairs,
    plan_inputs,
)
from neusemslice.errors import DatasetError
from neusemslice.zip_file import DAMAGED_ZIP, open_zip

NAMES = ("x_train", "y_train", "x_test", "y_test", "class_names")
BLOCK_BYTES = 4 * 1024**2
_MAX_NAME_CHARACTERS = 200
_HEADER_BYTES = 16_384
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@runtime_checkable
class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class _Array:
    """One entry's header: where its data starts, and what it claims to be."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    start: int


def read_npz(path: Path, limits: ImportLimits) -> Source:
    """The dataset in an .npz file.

    Raises:
        DatasetError: an array is missing, unknown, damaged, pickled, or does not fit the others.
    """
    with open_zip(path, limits.max_entries, DatasetError) as archive:
        check_zip_sizes(archive, path, limits)
        splits = _splits([entry.filename.removesuffix(".npy") for entry in archive.infolist()])
        arrays = {entry.filename.removesuffix(".npy"): _header(archive, entry) for entry in archive.infolist()}
        layouts = {s: plan_inputs(f"x_{s}", arrays[f"x_{s}"].shape, arrays[f"x_{s}"].dtype, limits) for s in splits}
        labels = {s: check_labels(f"y_{s}", _whole(archive, f"y_{s}", arrays, limits), limits) for s in splits}
        check_pairs(layouts, {split: arrays[f"x_{split}"].shape[0] for split in splits}, labels)
        named = "class_names" in arrays
        class_names = check_categories(
            labels, _class_names(_whole(archive, "class_names", arrays, limits)) if named else None
        )
    layout = layouts["train"]
    blocks = _blocks(path, {split: (arrays[f"x_{split}"], layouts[split]) for split in splits}, limits)
    return Source(labels, class_names, layout.sample_shape, layout.dtype, blocks)


def _splits(names: list[str]) -> list[str]:
    for name in names:
        if name not in NAMES or names.count(name) > 1:
            raise DatasetError(
                f"The file holds {'an unknown' if name not in NAMES else 'more than one'} array {name!r:.80}.",
                hint=f"Name the arrays {', '.join(NAMES)}.",
            )
    splits = [split for split in SPLITS if split == "train" or f"x_{split}" in names or f"y_{split}" in names]
    for split in splits:
        for name in (f"x_{split}", f"y_{split}"):
            if name not in names:
                raise DatasetError(f"The file lacks {name}.", hint="Give x_train, y_train and, if any, x_test, y_test.")
    return splits


def _header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Array:
    """Shape and type of an array, which fill its entry exactly."""
    name = entry.filename.removesuffix(".npy")
    try:
        with archive.open(entry) as stream:
            head = io.BytesIO(stream.read(_HEADER_BYTES))
        reader = _READERS[np.lib.format.read_magic(head)]
        shape, fortran_order, dtype = reader(head)
    except Exception as error:  # numpy raises whatever a false header leads its parser into
        raise DatasetError(
            f"{name!r:.80} is no numpy array: {error!s:.200}.", hint="Write it with np.savez."
        ) from error
    if dtype.hasobject:
        raise DatasetError(
            f"{name} holds Python objects, which would have to be unpickled.", hint="Give it a numeric type."
        )
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if min(shape, default=0) < 0 or head.tell() + size != entry.file_size:
        raise DatasetError(
            f"{name} claims {list(shape)} of {dtype}, {size:,} bytes; its entry has {entry.file_size - head.tell():,}.",
            hint="Write the file again with np.savez.",
        )
    return _Array(shape, dtype, fortran_order, head.tell())


def _whole(archive: zipfile.ZipFile, name: str, arrays: dict[str, _Array], limits: ImportLimits) -> NDArray[Any]:
    """An array read at once."""
    array = arrays[name]
    size = int(np.prod(array.shape, dtype=object)) * array.dtype.itemsize
    if size > limits.max_whole_array_bytes:
        raise DatasetError(
            f"{name} must be read at once and has {size:,} bytes.",
            hint=f"At most {limits.max_whole_array_bytes:,} are accepted; inputs are streamed when saved in C order "
            "(np.ascontiguousarray).",
        )
    with _open_array(archive, name, array) as stream:
        content = _read_exactly(stream, size, name)
    return np.ndarray(array.shape, array.dtype, content, order="F" if array.fortran_order else "C")


def _class_names(values: NDArray[Any]) -> tuple[str, ...]:
    if values.ndim != 1 or values.dtype.kind != "U" or values.dtype.itemsize > 4 * _MAX_NAME_CHARACTERS:
        raise DatasetError(
            f"class_names is {values.dtype} {list(values.shape)}.",
            hint=f"Give a list of strings of at most {_MAX_NAME_CHARACTERS} characters: np.array(['cat', 'dog']).",
        )
    names = tuple(values.tolist())
    if any("\ud800" <= character <= "\udfff" for name in names for character in name):
        raise DatasetError("class_names holds half a character (a lone surrogate).", hint="Write the names in Unicode.")
    return names


def _blocks(
    path: Path, inputs: dict[str, tuple[_Array, InputLayout]], limits: ImportLimits
) -> Iterator[tuple[str, int, NDArray[Any]]]:
    with open_zip(path, limits.max_entries, DatasetError) as archive:
        for split, (array, layout) in inputs.items():
            name = f"x_{split}"
            if array.fortran_order:
                yield split, 0, layout.settle(_whole(archive, name, {name: array}, limits))
                continue
            row_bytes = int(np.prod(array.shape[1:])) * array.dtype.itemsize
            step = max(1, BLOCK_BYTES // row_bytes)
            with _open_array(archive, name, array) as stream:
                for first in range(0, array.shape[0], step):
                    count = min(step, array.shape[0] - first)
                    rows = np.frombuffer(_read_exactly(stream, count * row_bytes, name), array.dtype)
                    yield split, first, layout.settle(rows.reshape(count, *array.shape[1:]))


@contextmanager
def _open_array(archive: zipfile.ZipFile, name: str, array: _Array) -> Iterator[_Readable]:
    """The array's entry, open where its data starts."""
    try:
        stream = archive.open(f"{name}.npy")
    except (*DAMAGED_ZIP, KeyError) as error:
        raise DatasetError(f"{name} cannot be read: {error}.", hint="Write the file again with np.savez.") from error
    with stream:
        _read_exactly(stream, array.start, name)
        yield stream


def _read_exactly(stream: _Readable, size: int, name: str) -> bytes:
    try:
        content = stream.read(size)
    except DAMAGED_ZIP as error:
        raise DatasetError(f"{name} is damaged: {error}.", hint="Write the file again with np.savez.") from error
    if len(content) != size:
        raise DatasetError(f"{name} ends early.", hint="Write the file again with np.savez.")
    return content
