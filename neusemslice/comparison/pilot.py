"""The paper's pilot study (section 3.1, tables 1 to 3): silence a tenth of the neurons at a time.

The neurons of every layer are put in contribution order and cut into ten equal ranges, the most contributing first.
Each range is silenced in all layers at once. If a metric is right about what contributes, silencing the first range
hurts most and the last least.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from neusemslice.batches import Batches, as_pair
from neusemslice.comparison.curves import measure_accuracy
from neusemslice.masking import mask_neurons
from neusemslice.progress import Progress
from neusemslice.slicing import ModelSlice
from neusemslice.tracing import SliceableModel

RANGES = 10


@dataclass(frozen=True)
class Ranking:
    """What is left of the accuracy when each range of one order is silenced, the most contributing range first.

    Attributes:
        metric: None for the random order (the control).
        overall: accuracy on all data, by the order over all data (table 1).
        overall_per_category: the same networks, for each range the accuracy of each category.
        own: for each range, the accuracy of each studied category on its own samples, by its own order (table 3; their
            mean is table 2). None for the random order.
    """

    metric: str | None
    overall: tuple[float, ...]
    overall_per_category: tuple[tuple[float | None, ...], ...]
    own: tuple[tuple[float, ...], ...] | None

    def own_mean(self) -> tuple[float, ...] | None:
        """Mean over the studied categories, for each range (table 2)."""
        return None if self.own is None else tuple(sum(row) / len(row) for row in self.own)


@dataclass(frozen=True)
class PilotStudy:
    """One model's rankings; `categories` are those studied with their own order."""

    model: str
    categories: tuple[int, ...]
    rankings: tuple[Ranking, ...]


@dataclass(frozen=True)
class OfCategory:
    """The samples of one category, batch by batch; iterating again starts again."""

    data: Batches
    category: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(self.data):
            inputs, labels = as_pair(batch, number)
            chosen = labels == self.category
            if bool(chosen.any()):
                yield inputs[chosen], labels[chosen]


def study_categories(per_category: Sequence[float | None], most: int) -> tuple[int, ...]:
    """At most so many of the categories that have samples, evenly spread from the first to the last."""
    present = [category for category, accuracy in enumerate(per_category) if accuracy is not None]
    if len(present) <= most:
        return tuple(present)
    places = torch.linspace(0, len(present) - 1, most).round().long().tolist()
    return tuple(present[place] for place in places)


def rank_by(
    model: SliceableModel,
    metric: str | None,
    overall: ModelSlice,
    own: ModelSlice | None,
    test: Batches,
    categories: Sequence[int],
    progress: Progress,
    done: int,
    total: int,
) -> Ranking:
    """Silence every range of an order, and of each category's own order if there is one.

    Args:
        overall: its orders are the same for all categories.
        own: its orders are each category's own.
    """
    whole, whole_per_category, by_category = [], [], []
    for number in range(RANGES):
        masked = mask_neurons(model, keep_without(overall.orders, 0, number))
        accuracy, per_category = measure_accuracy(masked, test, progress.should_stop)
        whole.append(accuracy)
        whole_per_category.append(per_category)
        if own is not None:
            by_category.append(
                tuple(_accuracy_without(model, own, number, category, test, progress) for category in categories)
            )
        progress.report("pilot", done + number + 1, total)
    return Ranking(metric, tuple(whole), tuple(whole_per_category), None if own is None else tuple(by_category))


def keep_without(
    orders: Mapping[str, Int64[Tensor, "categories _"]], category: int, number: int
) -> dict[str, Bool[Tensor, " _"]]:
    """Keep masks that silence the given tenth of a category's order in every layer.

    A layer of fewer than ten neurons has empty tenths; a layer of one neuron is left alone.
    """
    keep = {}
    for layer, order in orders.items():
        neurons = order.shape[1]
        first, last = (round(neurons * edge / RANGES) for edge in (number, number + 1))
        mask = torch.ones(neurons, dtype=torch.bool)
        mask[order[category, first:last]] = False
        if mask.any():
            keep[layer] = mask
    return keep


def _accuracy_without(
    model: SliceableModel, own: ModelSlice, number: int, category: int, test: Batches, progress: Progress
) -> float:
    masked = mask_neurons(model, keep_without(own.orders, category, number))
    return measure_accuracy(masked, OfCategory(test, category), progress.should_stop)[0]
