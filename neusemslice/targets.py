"""From a target to the cut that meets it: a search over the steps of an analysis, without analysing again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch

from neusemslice.batches import Batches, require_reiterable
from neusemslice.budgets import check_budget, meet_latency, meet_size
from neusemslice.config import Branches, SlicingConfig
from neusemslice.errors import ConfigError, TargetError
from neusemslice.evaluation import evaluate
from neusemslice.masking import mask_neurons
from neusemslice.model_slice import ModelSlice
from neusemslice.progress import Progress
from neusemslice.steps import TOLERANCE, Steps
from neusemslice.tracing import SliceableModel

MAX_EVALUATIONS = 12
"""Most evaluations of a cut on the validation data for one accuracy target, beside one of the network itself."""

_ROUNDING = 1e-9


def check_targets(
    model: SliceableModel, configs: Sequence[SlicingConfig], validation: Batches | None, branches: Branches
) -> None:
    """What can be known before the analysis.

    Raises:
        ConfigError: a config has a target of accuracy, and there is nothing to measure it on.
        DatasetError: the validation data can be read only once.
        TargetError: a budget of size or latency is less than a network of one neuron a layer needs.
    """
    if any(config.target == "max_accuracy_drop" and config.resolved_cut is None for config in configs):
        if validation is None:
            raise ConfigError(
                "max_accuracy_drop is measured on validation data, and there is none.",
                field="max_accuracy_drop",
                hint="Pass validation: labelled batches that are neither analysed nor used to judge the result.",
            )
        require_reiterable(validation)
    for config in configs:
        check_budget(model, config, branches)


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

    `target_size_bytes` and `target_latency_ms` are budgets, see `neusemslice.budgets`.

    Raises:
        TargetError: no cut is near enough to the compression or within the budget, or even the gentlest loses too much.
    """
    own_accuracy = cache(lambda: _accuracy(model.graph_module, validation, progress))
    return [_resolve(model, slice_, own_accuracy, validation, branches, progress) for slice_ in slices]


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
    steps = Steps(model, slice_, branches, progress)
    if slice_.config.target_compression is not None:
        place = _meet_compression(steps, slice_.config.target_compression)
    elif slice_.config.target_size_bytes is not None:
        place = meet_size(steps, slice_.config.target_size_bytes)
    elif slice_.config.target_latency_ms is not None:
        place = meet_latency(steps, slice_.config.target_latency_ms, slice_.config.latency_batch_size)
    else:
        assert slice_.config.max_accuracy_drop is not None  # the only other target
        place = _hold_accuracy(
            steps,
            own_accuracy() - slice_.config.max_accuracy_drop,
            lambda place: _accuracy(mask_neurons(model, steps.at(place).merged(), branches), validation, progress),
        )
    return replace(slice_, config=slice_.config.resolved(steps.cuts[place]))


def _meet_compression(steps: Steps, target: float) -> int:
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


def _hold_accuracy(steps: Steps, least: float, accuracy: Callable[[int], float]) -> int:
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
