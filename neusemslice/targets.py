"""From a target to the cut that meets it: a search over the steps of an analysis, without analysing again.

What a cut keeps changes only where the cut passes a value of a curve (semantic) or a share k / n of a layer's neurons
(the other strategies). Between two such steps all cuts are the same, so the steps are all there is to search.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch
from jaxtyping import Float64
from torch import Tensor

from neusemslice.batches import Batches, require_reiterable
from neusemslice.config import Branches, SlicingConfig, cut_field
from neusemslice.errors import ConfigError, TargetError
from neusemslice.evaluation import evaluate
from neusemslice.masking import mask_neurons
from neusemslice.model_slice import ModelSlice
from neusemslice.profiling import count_parameters
from neusemslice.progress import Progress
from neusemslice.restructuring import parameters_after
from neusemslice.selection import scanned_counts
from neusemslice.tracing import SliceableModel

TOLERANCE = 0.005
"""Largest difference between the compression asked for and the one reached."""
MAX_EVALUATIONS = 12
"""Most evaluations of a cut on the validation data for one accuracy target, beside one of the network itself."""

_ROUNDING = 1e-9


def check_targets(configs: Sequence[SlicingConfig], validation: Batches | None) -> None:
    """Raises ConfigError or DatasetError if a config has a target of accuracy and there is nothing to measure it on."""
    if any(config.target == "max_accuracy_drop" and config.resolved_cut is None for config in configs):
        if validation is None:
            raise ConfigError(
                "max_accuracy_drop is measured on validation data, and there is none.",
                field="max_accuracy_drop",
                hint="Pass validation: labelled batches that are neither analysed nor used to judge the result.",
            )
        require_reiterable(validation)


def resolve_targets(
    model: SliceableModel,
    slices: Sequence[ModelSlice],
    validation: Batches | None,
    branches: Branches,
    progress: Progress,
) -> list[ModelSlice]:
    """Each slice at the cut that its config's target asks for; slices without a target to search for stay as they are.

    `target_compression` is met within half a percentage point, by bisection: what is kept only grows with the cut.

    `max_accuracy_drop` is a promise about the slice that is returned: it has been evaluated on the validation data,
    masked, and its accuracy is at most that much below the network's own. Accuracy need not fall steadily with
    compression, so a smaller slice that keeps the promise may exist: the search is a bisection of the compression, of
    at most `MAX_EVALUATIONS` evaluations.

    Raises:
        TargetError: no cut is near enough to the compression, or even the gentlest cut loses too much.
    """
    own_accuracy = cache(lambda: _accuracy(model.graph_module, validation, progress))
    return [_resolve(model, slice_, own_accuracy, validation, branches, progress) for slice_ in slices]


def cut_steps(slice_: ModelSlice) -> Float64[Tensor, " steps"]:
    """A cut for each choice of neurons that a slice can make, in ascending order: what is kept only grows.

    Each lies in the middle of the cuts that make its choice, so that rounding cannot change it.
    """
    if slice_.config.strategy == "semantic":
        highest = [
            curves[:, scanned_counts(curves.shape[1], slice_.config.increment) - 1].cummax(1).values.flatten()
            for curves in slice_.curves.values()
        ]
        ends = torch.cat(highest).clamp(max=1.0)
    else:
        sizes = sorted({order.shape[1] for order in slice_.orders.values()})
        ends = torch.cat([torch.arange(1, size + 1, dtype=torch.float64) / size for size in sizes])
    ends = ends[ends > 0].unique()
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    middles = (starts + ends) / 2
    return torch.where(middles > starts, middles, ends)


def _resolve(
    model: SliceableModel,
    slice_: ModelSlice,
    own_accuracy: Callable[[], float],
    validation: Batches | None,
    branches: Branches,
    progress: Progress,
) -> ModelSlice:
    if slice_.config.target is None or slice_.config.resolved_cut is not None:
        return slice_
    steps = _Steps(model, slice_, branches, progress)
    if slice_.config.target_compression is not None:
        place = _meet_compression(steps, slice_.config.target_compression)
    else:
        assert slice_.config.max_accuracy_drop is not None  # the only other target
        place = _hold_accuracy(
            steps,
            own_accuracy() - slice_.config.max_accuracy_drop,
            lambda place: _accuracy(mask_neurons(model, steps.at(place).merged(), branches), validation, progress),
        )
    return replace(slice_, config=slice_.config.resolved(steps.cuts[place]))


class _Steps:
    """The cuts of a slice, in ascending order, with the compression at each. It falls as the cut rises."""

    def __init__(self, model: SliceableModel, slice_: ModelSlice, branches: Branches, progress: Progress) -> None:
        self._model, self._slice, self._branches, self._progress = model, slice_, branches, progress
        self._before = count_parameters(model.graph_module)
        self._known: dict[int, float] = {}
        self.cuts: list[float] = cut_steps(slice_).tolist()

    def at(self, place: int) -> ModelSlice:
        """The slice at that step."""
        return self._slice.at(self.cuts[place])

    def compression(self, place: int) -> float:
        """Share of the parameters that the step removes."""
        if place not in self._known:
            self._progress.report("target", 0, 1)
            left = parameters_after(self._model, self.at(place).merged(), self._branches)
            self._known[place] = 1 - left / self._before
        return self._known[place]

    def first_at_most(self, compression: float) -> int:
        """The lowest cut that removes no more than that; the highest cut if all remove more."""
        low, high = 0, len(self.cuts) - 1
        while low < high:
            middle = (low + high) // 2
            if self.compression(middle) <= compression:
                high = middle
            else:
                low = middle + 1
        return low

    def describe(self, place: int) -> str:
        """What the step does, for a message."""
        field = cut_field(self._slice.config.strategy)
        return f"{field}={self.cuts[place]:.6g} removes {self.compression(place):.2%}"


def _meet_compression(steps: _Steps, target: float) -> int:
    """The step nearest to the target."""
    found = steps.first_at_most(target)
    neighbours = [place for place in (found - 1, found) if place >= 0]
    nearest = min(neighbours, key=lambda place: abs(steps.compression(place) - target))
    if abs(steps.compression(nearest) - target) > TOLERANCE:
        raise TargetError(
            f"No cut removes {target:.2%} of the parameters, give or take {TOLERANCE:.1%}: "
            f"{', and the nearest cut on the other side, '.join(map(steps.describe, neighbours))}.",
            hint="Ask for one of these, or slice by another strategy, metric or increment.",
        )
    return nearest


def _hold_accuracy(steps: _Steps, least: float, accuracy: Callable[[int], float]) -> int:
    """The step that removes most among the evaluated ones with at least that accuracy."""
    gentle, fierce, measured = len(steps.cuts) - 1, -1, {}

    def holds(place: int) -> bool:
        measured[place] = accuracy(place)
        return measured[place] >= least - _ROUNDING

    while gentle - fierce > 1 and len(measured) < MAX_EVALUATIONS - 1:
        removes_less, removes_more = steps.compression(gentle), steps.compression(max(fierce, 0))
        if measured and removes_more - removes_less <= TOLERANCE:
            break
        middle = steps.first_at_most((removes_less + removes_more) / 2)
        middle = min(max(middle, fierce + 1), gentle - 1)
        if holds(middle):
            gentle = middle
        else:
            fierce = middle
    if gentle not in measured and not holds(gentle):
        raise TargetError(
            f"Even the gentlest cut loses too much: {steps.describe(gentle)} and leaves an accuracy of "
            f"{measured[gentle]:.2%}, where {least:.2%} is asked for.",
            hint="Allow a larger drop, or slice by another strategy or metric.",
        )
    return gentle


def _accuracy(network: torch.nn.Module, validation: Batches | None, progress: Progress) -> float:
    assert validation is not None  # check_targets
    accuracy = evaluate(network, validation, should_stop=progress.should_stop).accuracy
    if accuracy is None:
        raise ConfigError(
            "max_accuracy_drop is for classification, and the labels are targets of a regression.",
            field="max_accuracy_drop",
            hint="Give target_compression instead.",
        )
    return accuracy
