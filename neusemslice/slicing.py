"""Which neurons are critical: contributions put them in order, a cut decides how many are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from neusemslice.batches import Batches, require_reiterable
from neusemslice.config import Branches, MetricName, SlicingConfig
from neusemslice.contribution import Contributions, score_many
from neusemslice.coverage import Coverage, control_order, measure_coverage, own_order
from neusemslice.deeparc.comparing import slice_by_similarity
from neusemslice.model_slice import ModelSlice
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.targets import check_targets, resolve_targets
from neusemslice.tracing import SliceableModel

__all__ = ["ModelSlice", "slice_many", "slice_model"]


def slice_model(
    model: SliceableModel,
    data: Batches,
    config: SlicingConfig | None = None,
    *,
    validation: Batches | None = None,
    branches: Branches = "union",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> ModelSlice:
    """Find the critical neurons of each layer for each category (paper section 3.3).

    All samples enter the contributions; the first `config.samples_per_category` of each category enter the coverage.
    The result depends on the data and the config, not on batch sizes or the memory budget.

    Args:
        data: re-iterable batches (inputs, labels).
        validation: re-iterable batches that `config.max_accuracy_drop` is measured on: not those of `data`, and not
            those that the result is judged by in the end.
        branches: how the slice will be restructured; what a cut removes, which the config's target is about, depends on
            it.

    Raises:
        ConfigError: the memory budget is too small, or a target of accuracy comes without validation data.
        DatasetError: the data does not fit the model, a category has no or too few samples, or it reads only once.
        TargetError: no cut reaches the config's target; of a budget that is too small for any cut, before the analysis.
        StoppedError: should_stop() returned true.
    """
    configs = [config or SlicingConfig()]
    return slice_many(
        model,
        data,
        configs,
        validation=validation,
        branches=branches,
        on_progress=on_progress,
        should_stop=should_stop,
    )[0]


def slice_many(
    model: SliceableModel,
    data: Batches,
    configs: Sequence[SlicingConfig],
    *,
    validation: Batches | None = None,
    branches: Branches = "union",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> list[ModelSlice]:
    """`slice_model` for each config, from one analysis: each metric is scored once, and outputs are collected once.

    Each slice is the one that `slice_model` gives for its config alone, to the last bit.

    Args: and Raises: those of `slice_model`.
    """
    require_reiterable(data)
    check_targets(model, configs, validation, branches)
    progress = Progress(on_progress, should_stop)
    by_layer = [place for place, config in enumerate(configs) if config.strategy == "deeparc"]
    by_neuron = [place for place, config in enumerate(configs) if config.strategy != "deeparc"]
    slices: dict[int, ModelSlice] = {}
    if by_neuron:
        metrics = list(dict.fromkeys(configs[place].metric for place in by_neuron))
        scores = score_many(model, data, metrics, on_progress=on_progress, should_stop=should_stop)
        for places in _together(configs, by_neuron, "landscape", "samples_per_category"):
            coverage = measure_coverage(model, data, [configs[place] for place in places], scores, progress)
            slices |= {place: assemble(model, configs[place], scores, coverage) for place in places}
    for places in _together(configs, by_layer, "landscape", "samples_per_category", "estimator"):
        found = slice_by_similarity(model, data, configs[places[0]], on_progress=on_progress, should_stop=should_stop)
        slices |= {place: replace(found, config=configs[place]) for place in places}
    return resolve_targets(model, [slices[place] for place in range(len(configs))], validation, branches, progress)


def _together(configs: Sequence[SlicingConfig], places: Sequence[int], *fields: str) -> list[list[int]]:
    """The places of configs, together where the configs agree in some fields."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place in places:
        groups.setdefault(tuple(getattr(configs[place], field) for field in fields), []).append(place)
    return list(groups.values())


def assemble(
    model: SliceableModel, config: SlicingConfig, scores: Mapping[MetricName, Contributions], coverage: Coverage
) -> ModelSlice:
    """A config's part of an analysis."""
    layers = [layer.name for layer in model.sliceable_layers]
    own, control = own_order(config), control_order(config)
    return ModelSlice(
        config,
        model.fingerprint,
        contributions={layer: scores[config.metric][layer] for layer in layers},
        orders={layer: coverage.orders[layer, own] for layer in layers},
        curves={layer: coverage.curves[layer, own, config.estimator] for layer in layers},
        control_curves={layer: coverage.curves[layer, control, config.estimator] for layer in layers},
    )
