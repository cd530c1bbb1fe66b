"""The one form every dataset format is read into before it is written: labels known, samples still to come."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neusemslice.data.limits import ImportLimits
from neusemslice.errors import DatasetError

SPLITS = ("train", "test")
CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Source:
    """A dataset about to be written.

    Args:
        labels: split name -> labels, checked.
        class_names: one name a category.
        sample_shape: one stored sample, channels first.
        dtype: of the stored samples, uint8 or float32.
        blocks: (split, number of the first row, rows), every row exactly once, in any order.
    """

    labels: dict[str, NDArray[np.int64]]
    class_names: tuple[str, ...]
    sample_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Iterator[tuple[str, int, NDArray[Any]]]


def check_labels(name: str, labels: NDArray[Any], limits: ImportLimits) -> NDArray[np.int64]:
    """The labels as int64 [N].

    Raises:
        DatasetError: they are not whole numbers from 0 on, [N] or [N, 1], or there are none.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DatasetError(
            f"{name} has shape {list(labels.shape)}.", hint="Give one label a sample, [N]; for one-hot rows use argmax."
        )
    if labels.dtype.kind not in "iu":
        raise DatasetError(f"{name} is {labels.dtype}.", hint="Give labels as integers from 0 on.")
    if not 1 <= len(labels) <= limits.max_samples:
        raise DatasetError(
            f"{name} has {len(labels):,} labels.", hint=f"From 1 to {limits.max_samples:,} are accepted."
        )
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= limits.max_categories:
        raise DatasetError(
            f"{name} holds label {least if least < 0 else most}.",
            hint=f"Number the categories from 0; at most {limits.max_categories:,} are accepted.",
        )
    return labels.astype(np.int64)


def check_categories(labels: dict[str, NDArray[np.int64]], class_names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The class names (numbers where none are given), when each has samples to learn from.

    Raises:
        DatasetError: a category has no samples in the train split, or a label has no name.
    """
    most = max(int(values.max()) for values in labels.values())
    names = tuple(map(str, range(most + 1))) if class_names is None else class_names
    if most >= len(names):
        raise DatasetError(f"Label {most} has no class name; there are {len(names)}.", hint="Name every category.")
    counts = np.bincount(labels["train"], minlength=len(names))
    if not counts.all():
        raise DatasetError(
            f"Category {int(np.argmin(counts))} has no samples in the train split.",
            hint="Number the categories 0, 1, 2, ... without a gap.",
        )
    return names


@dataclass(frozen=True)
class InputLayout:
    """How the rows of an input array become stored samples."""

    sample_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    channels_last: bool

    def settle(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows as they lie in the file -> rows as they are stored."""
        if self.channels_last:
            rows = np.moveaxis(rows, -1, 1)
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which the writer refuses
            return rows.astype(self.dtype, copy=False).reshape(-1, *self.sample_shape)


def plan_inputs(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], limits: ImportLimits) -> InputLayout:
    """How inputs of this shape are stored: [N, F], [N, H, W], [N, H, W, C] or [N, C, H, W], channels first in the end.

    Raises:
        DatasetError: the shape or type is no input's, or there are no samples, or too large ones.
    """
    if dtype.kind not in "buif":
        raise DatasetError(f"{name} is {dtype}.", hint="Give inputs as integers or floats.")
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise DatasetError(
            f"{name} has shape {list(shape)}.", hint="Give [N, F], [N, H, W], [N, H, W, C] or [N, C, H, W]."
        )
    if shape[0] > limits.max_samples:
        raise DatasetError(f"{name} has {shape[0]:,} samples.", hint=f"At most {limits.max_samples:,} are accepted.")
    sample = shape[1:]
    channels_last = len(sample) == 3 and sample[2] in CHANNELS and sample[0] not in CHANNELS
    if len(sample) == 2:
        sample = (1, *sample)
    elif channels_last:
        sample = (sample[2], *sample[:2])
    if int(np.prod(sample, dtype=object)) > limits.max_sample_elements:
        raise DatasetError(
            f"One sample of {name} is {list(sample)}.",
            hint=f"At most {limits.max_sample_elements:,} numbers are accepted.",
        )
    return InputLayout(sample, dtype if dtype == np.uint8 else np.dtype(np.float32), channels_last)


def check_pairs(layouts: dict[str, InputLayout], counts: dict[str, int], labels: dict[str, NDArray[np.int64]]) -> None:
    """Check that each split has one label a sample, and that all splits are stored alike.

    Raises:
        DatasetError: lengths, shapes or types differ.
    """
    for split, count in counts.items():
        if count != len(labels[split]):
            raise DatasetError(
                f"The {split} split has {count:,} samples and {len(labels[split]):,} labels.",
                hint="Give one label a sample.",
            )
    first = layouts["train"]
    for split, layout in layouts.items():
        if (layout.sample_shape, layout.dtype) != (first.sample_shape, first.dtype):
            raise DatasetError(
                f"Train samples are {first.dtype} {list(first.sample_shape)}, "
                f"{split} samples {layout.dtype} {list(layout.sample_shape)}.",
                hint="Store both splits alike.",
            )
