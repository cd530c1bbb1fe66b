"""The data that the engine reads: any iterable of (inputs, labels), checked batch by batch.

The labels say what the network is for. Whole numbers [batch] are categories: a sample belongs to its own. Floating
point numbers [batch, outputs] are the targets of a regression: each output is a category of its own, and every sample
belongs to all of them.
"""

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor

from neusemslice.errors import DatasetError
from neusemslice.tracing import SliceableModel

Batches = Iterable[Any]
"""Yields (inputs [batch, *input shape], labels): whole numbers [batch], or floating point [batch, outputs]."""


def check_batches(data: Batches, model: SliceableModel) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, on the model's device: inputs of its type, labels Int64 [batch] or Float64 [batch, categories].

    Raises:
        DatasetError: a batch is no pair of tensors, its samples have another shape, a label is no category or is not
            finite, batches mix categories and targets, or there is no sample at all.
    """
    samples = 0
    first: Tensor | None = None
    for number, batch in enumerate(data):
        inputs, labels = as_pair(batch, number)
        if tuple(inputs.shape[1:]) != model.input_shape:
            raise DatasetError(
                f"Batch {number} has inputs {tuple(inputs.shape)}; the model takes samples of {model.input_shape}.",
                hint="Give inputs as [batch, *input shape].",
            )
        samples += len(inputs)
        checked = check_labels(labels, model.categories, number)
        first = checked if first is None else first
        require_same_kind(first, checked, number)
        if is_regression(checked):
            (output,) = model.graph_module.graph.output_node().all_input_nodes
            require_no_softmax(ends_in_softmax=output.target != model.logits_node)
        yield inputs.to(model.device, model.dtype), checked.to(model.device)
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
    """Labels of batch `number` as Int64 [batch] (categories) or Float64 [batch, categories] (targets of a regression).

    Targets of a single output may be given as [batch].

    Raises:
        DatasetError: they are neither whole numbers from 0 to categories - 1 nor one finite number for each output.
    """
    if labels.is_floating_point():
        return _check_targets(labels, categories, number)
    if labels.ndim != 1 or labels.is_complex() or labels.dtype == torch.bool:
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


def _check_targets(labels: Tensor, outputs: int, number: int) -> Tensor:
    targets = labels.unsqueeze(1) if labels.ndim == 1 else labels
    if targets.ndim != 2 or targets.shape[1] != outputs:
        raise DatasetError(
            f"The labels of batch {number} are {labels.dtype} of shape {tuple(labels.shape)}: floating point labels "
            f"are the targets of a regression, and the model has {outputs} outputs.",
            hint=f"Give targets as [batch, {outputs}], or categories as whole numbers [batch].",
        )
    if not bool(torch.isfinite(targets).all()):
        raise DatasetError(
            f"The targets of batch {number} hold NaN or infinity.", hint="Leave out samples without a target."
        )
    return targets.double()


def is_regression(labels: Tensor) -> bool:
    """Whether checked labels are targets rather than categories."""
    return labels.is_floating_point()


def require_same_kind(first: Tensor, labels: Tensor, number: int) -> None:
    """Raises DatasetError if the labels of batch `number` are targets and the first ones categories, or the reverse."""
    if is_regression(first) != is_regression(labels):
        raise DatasetError(
            f"The labels of batch {number} are {labels.dtype}, those of the first batch {first.dtype}.",
            hint="Give whole numbers (categories) in all batches, or floating point targets in all.",
        )


def require_no_softmax(*, ends_in_softmax: bool) -> None:
    """Raises DatasetError if a network that gives probabilities is asked for a regression."""
    if ends_in_softmax:
        raise DatasetError(
            "The labels are floating point, the targets of a regression, but the network ends in a softmax.",
            hint="Give the categories as whole numbers.",
        )


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
