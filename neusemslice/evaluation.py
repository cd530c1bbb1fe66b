"""How well a network does on labelled data."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neusemslice.batches import Batches, as_pair, check_labels, count_batches, require_finite
from neusemslice.errors import DatasetError
from neusemslice.modes import evaluating
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.tracing import SliceableModel

_SMALLEST = 1e-300
"""Stands in for a probability of zero in the loss."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy overall and for each category (None where it has no samples), and the mean cross entropy."""

    accuracy: float
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

    The network gives logits, or probabilities if its last layer is a softmax.

    Raises:
        DatasetError: there is no sample, a label is no category, or an output is not finite.
        StoppedError: should_stop() returned true.
    """
    module = network.graph_module if isinstance(network, SliceableModel) else network
    parameter = next(module.parameters(), None)
    progress = Progress(on_progress, should_stop)
    gives_probabilities = isinstance(list(module.modules())[-1], nn.Softmax)
    right, counts, loss = torch.zeros(0), torch.zeros(0), 0.0
    with evaluating(module), torch.inference_mode():
        for number, batch in enumerate(data):
            inputs, labels = as_pair(batch, number)
            logits: Tensor = module(inputs if parameter is None else inputs.to(parameter.device, parameter.dtype))
            require_finite(logits)
            categories = logits.shape[1]
            labels_checked = check_labels(labels, categories, number).to(logits.device)
            if number == 0:
                right = torch.zeros(categories, dtype=torch.long, device=logits.device)
                counts = torch.zeros_like(right)
            hits = labels_checked[logits.argmax(1) == labels_checked]
            right += torch.bincount(hits, minlength=categories)
            counts += torch.bincount(labels_checked, minlength=categories)
            if gives_probabilities:
                logits = logits.double().clamp_min(_SMALLEST).log()
            loss += float(cross_entropy(logits.double(), labels_checked, reduction="sum"))
            progress.report("evaluate", number + 1, max(count_batches(data), number + 1))
    samples = int(counts.sum())
    if samples == 0:
        raise DatasetError("There is no sample to evaluate on.", hint="Pass at least one labelled batch.")
    per_category = [
        hits / count if count else None for hits, count in zip(right.tolist(), counts.tolist(), strict=True)
    ]
    return Evaluation(int(right.sum()) / samples, loss / samples, samples, tuple(per_category))
