"""Reads safetensors files of arrays: `inputs` and `labels`, or x_train, y_train and optionally x_test, y_test."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neusemslice.data.limits import ImportLimits
from neusemslice.data.source import InputLayout, Source, check_categories, check_labels, check_pairs, plan_inputs
from neusemslice.errors import DatasetError
from neusemslice.safetensors_file import map_arrays

_BLOCK_BYTES = 4 * 1024**2
_NAMINGS = (
    {"train": ("inputs", "labels")},
    {"train": ("x_train", "y_train")},
    {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")},
)


def read_tensors(path: Path, limits: ImportLimits) -> Source:
    """The dataset in a safetensors file.

    Raises:
        DatasetError: a tensor is missing, unknown, of a type numpy has not, or does not fit the others.
    """
    arrays = map_arrays(path, DatasetError)
    for naming in _NAMINGS:
        if arrays.keys() == {name for pair in naming.values() for name in pair}:
            break
    else:
        raise DatasetError(
            f"The file holds the tensors {', '.join(sorted(arrays))!s:.200}.",
            hint="Name them inputs and labels, or x_train, y_train and, if any, x_test, y_test.",
        )
    layouts = {s: plan_inputs(x, arrays[x].shape, arrays[x].dtype, limits) for s, (x, _) in naming.items()}
    labels = {split: check_labels(y, arrays[y], limits) for split, (_, y) in naming.items()}
    check_pairs(layouts, {split: len(arrays[x]) for split, (x, _) in naming.items()}, labels)
    class_names = check_categories(labels, None)
    layout = layouts["train"]
    blocks = _blocks({split: (arrays[x], layouts[split]) for split, (x, _) in naming.items()})
    return Source(labels, class_names, layout.sample_shape, layout.dtype, blocks)


def _blocks(inputs: dict[str, tuple[NDArray[Any], InputLayout]]) -> Iterator[tuple[str, int, NDArray[Any]]]:
    for split, (array, layout) in inputs.items():
        step = max(1, _BLOCK_BYTES // array[0].nbytes)
        for first in range(0, len(array), step):
            yield split, first, layout.settle(np.asarray(array[first : first + step]))
