"""The data that the engine reads: any iterable of (inputs, labels), checked batch by batch."""

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor

from neusemslice.errors import DatasetError
from neusemslice.tracing import SliceableModel

Batches = Iterable[Any]
"""Yields (inputs [batch, *input shape], labels [batch])."""


def check_batches(data: Batches, model: SliceableModel) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, on the model's device and of its type.

    Raises:
        DatasetError: a batch is no pair of tensors, its samples have another shape, a label is no category, or there
            is no sample at all.
    """
    samples = 0
    for number, batch in enumerate(data):
        inputs, labels = as_pair(batch, number)
        if tuple(inputs.shape[1:]) != model.input_shape:
            raise DatasetError(
                f"Batch {number} has inputs {tuple(inputs.shape)}; the model takes samples of {model.input_shape}.",
                hint="Give inputs as [batch, *input shape].",
            )
        samples += len(inputs)
        yield inputs.to(model.device, model.dtype), check_labels(labels, model.categories, number).to(model.device)
    if samples == 0:
        raise DatasetError("The data has no samples.", hint="Pass at least one batch.")


def as_pair(batch: Any, number: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels of one batch.

    Raises:
        DatasetError: it is no pair of tensors of equal length.
    """
    pair = tuple(batch) if isinstance(batch, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(part, Tensor) and part.ndim for part in pair):
        raise DatasetError(
            f"Batch {number} is a {type(batch).__name__}, not a pair of tensors.", hint="Yield (inputs, labels)."
        )
    if len(pair[0]) != len(pair[1]):
        raise DatasetError(
            f"Batch {number} has {len(pair[0])} inputs and {len(pair[1])} labels.", hint="Give one label a sample."
        )
    return pair[0], pair[1]


def check_labels(labels: Tensor, categories: int, number: int) -> Tensor:
    """Labels as 64-bit whole numbers.

    Raises:
        DatasetError: they are no whole numbers from 0 to categories - 1.
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DatasetError(
            f"The labels of batch {number} are {labels.dtype} of shape {tuple(labels.shape)}.",
            hint="Give one whole number for each sample.",
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < categories:
        raise DatasetError(
            f"The labels of batch {number} go from {int(labels.min())} to {int(labels.max())}; "
            f"the model has categories 0 to {categories - 1}.",
            hint="Number the categories from 0, and use the model's own.",
        )
    return labels.long()


def require_finite(logits: Tensor) -> None:
    """Raises DatasetError if a logit is NaN or infinite."""
    if not bool(torch.isfinite(logits).all()):
        raise DatasetError(
            "The network's output is NaN or infinite on this data.",
            hint="Check the normalisation of the inputs and the network's weights.",
        )


def require_reiterable(data: Batches) -> None:
    """Raises DatasetError if `data` is used up by one pass."""
    if iter(data) is data:
        raise DatasetError(
            "The data can be read only once, and slicing needs several passes.",
            hint="Pass a list of batches or a DataLoader instead of a generator.",
        )


def count_batches(data: Batches) -> int:
    """How many batches there are, or 0 if the data does not know."""
    return len(data) if isinstance(data, Sized) else 0
