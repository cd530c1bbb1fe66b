"""Strategies times metrics times cuts, on one analysis of each model."""

import itertools
from collections.abc import Mapping, Sequence

from neusemslice.batches import Batches, require_reiterable
from neusemslice.comparison.curves import AccuracyCurve, measure_accuracy, measure_curve
from neusemslice.comparison.cuts import find_cuts
from neusemslice.comparison.pilot import Orders, PilotStudy, study, study_categories
from neusemslice.comparison.results import ComparedModel, Comparison
from neusemslice.comparison_config import ComparisonConfig
from neusemslice.config import SlicingConfig
from neusemslice.errors import ConfigError
from neusemslice.profiling import count_flops, count_parameters
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.slicing import ModelSlice, slice_many
from neusemslice.tracing import SliceableModel


def compare(
    models: SliceableModel | Mapping[str, SliceableModel],
    data: Batches,
    test: Batches,
    config: ComparisonConfig | None = None,
    *,
    calibration: Batches | None = None,
    evaluated_on: str = "test",
    category_names: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> Comparison:
    """Cut each model by every strategy and metric, and measure accuracy against compression.

    Each model is analysed once. Every point is the restructured network itself, evaluated on `test`. A curve's area is
    its mean accuracy over the compressions that all curves cover, the whole network included. With several models
    (the same network trained anew, say) the strategies are compared by a paired t-test and Cohen's d over the models.

    Args:
        models: one model, or several by name; all take the same data.
        data: re-iterable batches (inputs, labels) for the analysis.
        test: re-iterable batches that the analysis has not seen; accuracies are measured on them.
        config: what to compare. Default: `ComparisonConfig()`.
        calibration: re-iterable batches that the sewing layers of `deeparc` are fitted to. Default: `data`.
        evaluated_on: for the report; the split that `test` is, "train" if the analysis has seen it.
        category_names: for the report; one for each category. Default: their numbers.

    Raises:
        ConfigError: there is no model, or the names do not fit its categories.
        DatasetError: the data does not fit a model, reads only once, or has no categories.
        StoppedError: should_stop() returned true.
    """
    config = config or ComparisonConfig()
    named = {"model": models} if isinstance(models, SliceableModel) else dict(models)
    names = _category_names(named, category_names)
    calibration = data if calibration is None else calibration
    for batches in (data, test, calibration):
        require_reiterable(batches)
    progress = Progress(on_progress, should_stop)
    wholes, curves, studies = [], [], []
    for name, model in named.items():
        slices = _analyse(model, data, config, progress)
        whole = _measure_whole(name, model, test, should_stop)
        wholes.append(whole)
        curves += _curves_of(whole, model, slices, test, calibration, config, progress)
        if config.pilot:
            studies.append(_study(whole, model, slices, test, config, progress))
    return Comparison(config, names, evaluated_on, tuple(wholes), tuple(curves), tuple(studies))


def _category_names(models: Mapping[str, SliceableModel], names: Sequence[str]) -> tuple[str, ...]:
    if not models:
        raise ConfigError("There is no model to compare on.", field="models", hint="Give at least one.")
    categories = {model.categories for model in models.values()}
    if len(categories) > 1 or (names and {len(names)} != categories):
        raise ConfigError(
            f"The models have {', '.join(map(str, sorted(categories)))} categories, and {len(names)} are named.",
            field="category_names",
            hint="Give models of the same categories, and a name for each category or none.",
        )
    return tuple(names) or tuple(map(str, range(categories.pop())))


def _analyse(
    model: SliceableModel, data: Batches, config: ComparisonConfig, progress: Progress
) -> dict[SlicingConfig, ModelSlice]:
    """A slice for each strategy and metric, and for the orders that the pilot study needs beside them."""
    wanted = dict.fromkeys(config.slicing_configs())
    if config.pilot:
        for metric in config.metrics:
            wanted |= dict.fromkeys(config.slicing_config(name, metric) for name in ("global", "categorywise"))
        wanted[config.slicing_config("random", config.metrics[0])] = None
    found = slice_many(model, data, list(wanted), on_progress=progress.on_progress, should_stop=progress.should_stop)
    return dict(zip(wanted, found, strict=True))


def _measure_whole(name: str, model: SliceableModel, test: Batches, should_stop: ShouldStop | None) -> ComparedModel:
    accuracy, per_category = measure_accuracy(model, test, should_stop)
    parameters, flops = count_parameters(model.graph_module), count_flops(model.graph_module, model.input_shape)
    return ComparedModel(name, parameters, flops, accuracy, per_category)


def _curves_of(
    whole: ComparedModel,
    model: SliceableModel,
    slices: Mapping[SlicingConfig, ModelSlice],
    test: Batches,
    calibration: Batches,
    config: ComparisonConfig,
    progress: Progress,
) -> list[AccuracyCurve]:
    """One for each strategy and metric."""
    chosen = {}
    for run in config.slicing_configs():
        given = sorted(config.cuts(run.strategy), reverse=True)
        chosen[run] = given or find_cuts(model, slices[run], config.compressions, whole.parameters, progress)
    total, done = sum(map(len, chosen.values())), itertools.count()

    def tick() -> None:
        progress.report("evaluate", next(done), total)

    tick()
    return [
        measure_curve(whole.name, model, slices[run], cuts, test, calibration, tick, progress.should_stop)
        for run, cuts in chosen.items()
    ]


def _study(
    whole: ComparedModel,
    model: SliceableModel,
    slices: Mapping[SlicingConfig, ModelSlice],
    test: Batches,
    config: ComparisonConfig,
    progress: Progress,
) -> PilotStudy:
    """The pilot study of one model, with the random order as control."""
    orders = [
        Orders(
            metric,
            slices[config.slicing_config("global", metric)],
            slices[config.slicing_config("categorywise", metric)],
        )
        for metric in config.metrics
    ]
    orders.append(Orders(None, slices[config.slicing_config("random", config.metrics[0])], None))
    categories = study_categories(whole.per_category, config.pilot_categories)
    return study(whole.name, model, orders, test, categories, progress)
