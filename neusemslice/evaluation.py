"""How well a network does on labelled data."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neusemslice.batches import (
    Batches,
    as_pair,
    check_labels,
    count_batches,
    is_regression,
    require_finite,
    require_no_softmax,
    require_same_kind,
)
from neusemslice.contribution.moments import Moments
from neusemslice.errors import DatasetError
from neusemslice.modes import evaluating
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.tracing import SliceableModel

_SMALLEST = 1e-300
"""Stands in for a probability of zero in the loss."""


@dataclass(frozen=True)
class Evaluation:
    """How well a network does.

    Attributes:
        accuracy: share of samples whose largest logit is that of their category; None for a regression.
        loss: mean cross entropy, or for a regression the mean squared error over samples and outputs.
        samples: how many.
        per_category: accuracy of each category, None where it has no samples. For a regression R^2 of each output (the
            share of the targets' variance that is explained: 1 is exact, 0 is as good as their mean), None where the
            targets do not vary.
    """

    accuracy: float | None
    loss: float
    samples: int
    per_category: tuple[float | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"per_category": list(self.per_category)}


def evaluate(
    network: nn.Module | SliceableModel,
    data: Batches,
    *,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> Evaluation:
    """Accuracy and loss over all batches (inputs, labels), in eval mode; the network is left as it was.

    The network gives logits, or probabilities if its last layer is a softmax. Floating point labels make it a
    regression: no accuracy then, but mean squared error and R^2 (see `Evaluation`).

    Raises:
        DatasetError: there is no sample, a label is no category, targets do not fit the outputs, or an output is not
            finite.
        StoppedError: should_stop() returned true.
    """
    module = network.graph_module if isinstance(network, SliceableModel) else network
    gives_probabilities = isinstance(list(module.modules())[-1], nn.Softmax)
    progress = Progress(on_progress, should_stop)
    score: _Classification | _Regression | None = None
    with evaluating(module), torch.inference_mode():
        for number, (outputs, labels) in enumerate(_outputs(module, data)):
            if score is None and is_regression(labels):
                require_no_softmax(ends_in_softmax=isinstance(list(module.modules())[-1], nn.Softmax | nn.LogSoftmax))
                score = _Regression(outputs)
            elif score is None:
                score = _Classification(outputs, gives_probabilities=gives_probabilities)
            score.add(outputs, labels)
            progress.report("evaluate", number + 1, max(count_batches(data), number + 1))
    if score is None or score.samples == 0:
        raise DatasetError("There is no sample to evaluate on.", hint="Pass at least one labelled batch.")
    return score.result()


def _outputs(module: nn.Module, data: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """The network's outputs [batch, categories], and the checked labels beside them."""
    parameter = next(module.parameters(), None)
    first: Tensor | None = None
    for number, batch in enumerate(data):
        inputs, labels = as_pair(batch, number)
        outputs: Tensor = module(inputs if parameter is None else inputs.to(parameter.device, parameter.dtype))
        if outputs.ndim != 2:
            raise DatasetError(
                f"The network's output on batch {number} has shape {tuple(outputs.shape)}, not [batch, categories].",
                hint="The network has to give one number for each category, or for each output of a regression.",
            )
        require_finite(outputs)
        checked = check_labels(labels, outputs.shape[1], number).to(outputs.device)
        first = checked if first is None else first
        require_same_kind(first, checked, number)
        yield outputs, checked


class _Classification:
    """Hits of each category, and the cross entropy."""

    def __init__(self, outputs: Float[Tensor, "batch categories"], *, gives_probabilities: bool) -> None:
        self._gives_probabilities = gives_probabilities
        self._right = torch.zeros(outputs.shape[1], dtype=torch.long, device=outputs.device)
        self._counts = torch.zeros_like(self._right)
        self._loss = 0.0
        self.samples = 0

    def add(self, outputs: Float[Tensor, "batch categories"], labels: Int64[Tensor, " batch"]) -> None:
        self.samples += len(labels)
        hits = labels[outputs.argmax(1) == labels]
        self._right += torch.bincount(hits, minlength=len(self._right))
        self._counts += torch.bincount(labels, minlength=len(self._counts))
        logits = outputs.double()
        if self._gives_probabilities:
            logits = logits.clamp_min(_SMALLEST).log()
        self._loss += float(cross_entropy(logits, labels, reduction="sum"))

    def result(self) -> Evaluation:
        per_category = [
            hits / count if count else None
            for hits, count in zip(self._right.tolist(), self._counts.tolist(), strict=True)
        ]
        accuracy = int(self._right.sum()) / self.samples
        return Evaluation(accuracy, self._loss / self.samples, self.samples, tuple(per_category))


class _Regression:
    """Squared errors, and how much the targets vary."""

    def __init__(self, outputs: Float[Tensor, "batch categories"]) -> None:
        self._errors = torch.zeros(outputs.shape[1], dtype=torch.float64, device=outputs.device)
        self._targets = Moments.of_all(self._errors.new_zeros(0, 1, outputs.shape[1]))
        self.samples = 0

    def add(self, outputs: Float[Tensor, "batch categories"], targets: Float[Tensor, "batch categories"]) -> None:
        self.samples += len(targets)
        self._errors += (outputs.double() - targets).square().sum(0)
        self._targets = self._targets.merge(Moments.of_all(targets.unsqueeze(1)))

    def result(self) -> Evaluation:
        variation = self._targets.squared_deviations[0].tolist()
        explained = [
            1 - error / varied if varied > 0 else None
            for error, varied in zip(self._errors.tolist(), variation, strict=True)
        ]
        loss = float(self._errors.mean()) / self.samples
        return Evaluation(None, loss, self.samples, tuple(explained))
