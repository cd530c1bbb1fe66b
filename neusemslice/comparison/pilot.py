"""The paper's pilot study (section 3.1, tables 1 to 3): silence a tenth of the neurons at a time.

The neurons of every layer are put in contribution order and cut into ten equal ranges, the most contributing first.
Each range is silenced in all layers at once. If a metric is right about what contributes, silencing the first range
hurts most and the last least.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from neusemslice.batches import Batches, as_pair
from neusemslice.comparison.curves import Accuracies, measure_accuracy
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
class Orders:
    """Slices whose orders are studied: the same for all categories, and each category's own (None for the control)."""

    metric: str | None
    overall: ModelSlice
    own: ModelSlice | None


def study_categories(per_category: Sequence[float | None], most: int) -> tuple[int, ...]:
    """At most so many of the categories that have samples, evenly spread from the first to the last."""
    present = [category for category, accuracy in enumerate(per_category) if accuracy is not None]
    if len(present) <= most:
        return tuple(present)
    places = torch.linspace(0, len(present) - 1, most).round().long().tolist()
    return tuple(present[place] for place in places)


def study(
    name: str,
    model: SliceableModel,
    all_orders: Sequence[Orders],
    test: Batches,
    categories: tuple[int, ...],
    progress: Progress,
) -> PilotStudy:
    """Silence every range of every order. The samples of one category at a time are held in memory."""
    own_orders = [orders.own for orders in all_orders if orders.own is not None]
    total, done = RANGES * (len(all_orders) + len(own_orders) * len(categories)), itertools.count()
    progress.report("pilot", next(done), total)

    def accuracy(slice_: ModelSlice, category: int, number: int, data: Batches) -> Accuracies:
        masked = mask_neurons(model, keep_without(slice_.orders, category, number))
        found = measure_accuracy(masked, data, progress.should_stop)
        progress.report("pilot", next(done), total)
        return found

    overall = [[accuracy(orders.overall, 0, number, test) for number in range(RANGES)] for orders in all_orders]
    own: list[list[list[float]]] = []
    for category in categories:
        samples = samples_of(test, category)
        own.append(
            [[accuracy(slice_, category, number, samples)[0] for number in range(RANGES)] for slice_ in own_orders]
        )
    by_order = iter(zip(*own, strict=True))
    rankings = tuple(
        Ranking(
            orders.metric,
            tuple(share for share, _ in found),
            tuple(per_category for _, per_category in found),
            None if orders.own is None else tuple(zip(*next(by_order), strict=True)),
        )
        for orders, found in zip(all_orders, overall, strict=True)
    )
    return PilotStudy(name, categories, rankings)


def samples_of(data: Batches, category: int) -> list[tuple[Tensor, Tensor]]:
    """The samples of one category, batch by batch."""
    chosen = []
    for number, batch in enumerate(data):
        inputs, labels = as_pair(batch, number)
        if bool((labels == category).any()):
            chosen.append((inputs[labels == category], labels[labels == category]))
    return chosen


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
