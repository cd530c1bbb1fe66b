"""Orders of the neurons, and how much of its layer each prefix of an order covers, for many configs at once."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from neusemslice.batches import Batches, check_batches, is_regression
from neusemslice.config import Estimator, MetricName, SlicingConfig
from neusemslice.contribution import Contributions
from neusemslice.errors import DatasetError
from neusemslice.features import Part, Plan, collect_features, layer_reader
from neusemslice.progress import Progress
from neusemslice.similarity import LEAST_SAMPLES, prefix_curves
from neusemslice.tracing import SliceableLayer, SliceableModel


@dataclass(frozen=True)
class OrderName:
    """What an order of a layer's neurons comes from: the scores of a metric, or a draw.

    Attributes:
        metric: whose scores it follows; None if it is drawn.
        overall: whether these are the scores over all samples, not those of each category.
        drawn_for: purpose and seed of the draw.
    """

    metric: MetricName | None
    overall: bool = False
    drawn_for: str = ""

    @property
    def per_category(self) -> bool:
        """Whether the categories have orders of their own."""
        return self.metric is not None and not self.overall


def own_order(config: SlicingConfig) -> OrderName:
    """The order in which a config's strategy keeps neurons."""
    if config.strategy == "random":
        return OrderName(None, drawn_for=f"order {config.seed}")
    return OrderName(config.metric, overall=config.strategy == "global")


def control_order(config: SlicingConfig) -> OrderName:
    """The random order that a config's slice is compared with."""
    return OrderName(None, drawn_for=f"control {config.seed}")


@dataclass
class Coverage:
    """Orders and curves [categories, neurons] by layer and name of the order; curves also by estimator."""

    orders: dict[tuple[str, OrderName], Int64[Tensor, "categories _"]] = field(default_factory=dict)
    curves: dict[tuple[str, OrderName, Estimator], Float64[Tensor, "categories _"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Samples:
    """Which samples are compared together.

    Attributes:
        plan: the groups of samples, for `collect_features`.
        categories: of each group, those whose samples they are: one, or in a regression all.
    """

    plan: Plan
    categories: list[list[int]]


class CoverageMeter:
    """Stage "coverage": a step for each layer and category."""

    def __init__(self, model: SliceableModel, progress: Progress) -> None:
        self._progress = progress
        self._done, self._total = 0, len(model.sliceable_layers) * model.categories

    def report(self, steps: int = 0) -> None:
        """So many more steps are done; raises StoppedError."""
        self._done += steps
        self._progress.report("coverage", self._done, self._total)


def measure_coverage(
    model: SliceableModel,
    data: Batches,
    configs: Sequence[SlicingConfig],
    scores: Mapping[MetricName, Contributions],
    progress: Progress,
) -> Coverage:
    """The orders of all configs, and the curves of these and of the control orders.

    Args:
        configs: all with the same landscape and samples_per_category, which the outputs are collected by.
        scores: by metric.
        progress: stage "coverage", a step for each layer and category.

    Raises:
        ConfigError: the smallest of the memory budgets does not hold a layer's outputs on one category.
        DatasetError: a category has too few samples, or an output is not finite.
    """
    counts = scores[configs[0].metric].counts
    _require_enough_in_all(counts, configs)
    inputs, labels = next(batch for batch in check_batches(data, model) if len(batch[0]))
    samples = choose_samples(counts, configs[0], regression=is_regression(labels))
    meter = CoverageMeter(model, progress)
    budget = min(config.memory_budget_bytes for config in configs)
    features = read_features(model, data, samples.plan, inputs[:1], budget, meter.report)
    return cover(model, configs, scores, samples, features, meter)


def choose_samples(counts: Int64[Tensor, " categories"], config: SlicingConfig, *, regression: bool) -> Samples:
    """The first samples of each category, as many as the config says; of a regression the first ones."""
    sizes, categories = counts.clamp(max=config.samples_per_category).tolist(), list(range(len(counts)))
    if regression:
        plan = Plan(sizes[:1], lambda labels: torch.zeros(len(labels), dtype=torch.long), config.landscape)
        return Samples(plan, [categories])
    plan = Plan(sizes, lambda labels: labels, config.landscape)
    return Samples(plan, [[category] for category in categories])


def read_features(
    model: SliceableModel,
    data: Batches,
    plan: Plan,
    example: Float[Tensor, "1 ..."],
    budget_bytes: int,
    tick: Callable[[], None],
    before: Int64[Tensor, " groups"] | None = None,
) -> Iterator[tuple[Part, Tensor | None]]:
    """Each part's features, None where the data has no samples for it, in passes that fit the budget.

    Args:
        example: one sample, which shows the shapes.
        tick: called after each batch.
        before: see `collect_features`.

    Raises:
        ConfigError: the budget does not hold a layer's outputs on one category.
    """
    read = layer_reader(model)
    with torch.no_grad():
        shapes = read(example)
    for parts in plan.passes(shapes, budget_bytes):
        features = collect_features(model, data, read, plan, parts, tick, before)
        for part in parts:
            yield part, features.get(part)


def cover(
    model: SliceableModel,
    configs: Sequence[SlicingConfig],
    scores: Mapping[MetricName, Contributions],
    samples: Samples,
    features: Iterable[tuple[Part, Tensor | None]],
    meter: CoverageMeter,
) -> Coverage:
    """`measure_coverage` from features that have been read.

    Raises:
        DatasetError: a category has too few samples or features, or an output is not finite.
    """
    _require_enough_in_all(scores[configs[0].metric].counts, configs)
    coverage = Coverage()
    wanted: dict[Estimator, list[OrderName]] = {}
    for config in configs:
        for name in (own_order(config), control_order(config)):
            if name not in wanted.setdefault(config.estimator, []):
                wanted[config.estimator].append(name)
    for layer in model.sliceable_layers:
        for estimator, names in wanted.items():
            for name in names:
                order = _order(name, layer, scores, model.categories)
                coverage.orders[layer.name, name] = order
                coverage.curves[layer.name, name, estimator] = torch.zeros(order.shape, dtype=torch.float64)
    for part, found in features:
        values, categories = _require_all(found, samples.plan.sizes[part[1]]), samples.categories[part[1]]
        for estimator, names in wanted.items():
            _fill(coverage, part[0], categories, values, names, estimator)
        meter.report(len(categories))
    return coverage


def _require_enough_in_all(counts: Int64[Tensor, " categories"], configs: Sequence[SlicingConfig]) -> None:
    for config in configs:
        _require_enough_samples(counts, config.estimator)


def _require_enough_samples(counts: Int64[Tensor, " categories"], estimator: Estimator) -> None:
    """Raises DatasetError if the estimator cannot compare a category's landscapes."""
    least = LEAST_SAMPLES[estimator]
    short = [str(category) for category, count in enumerate(counts.tolist()) if count < least]
    if short:
        raise DatasetError(
            f"Category {', '.join(short[:10])}: CKA ({estimator}) needs at least {least} samples, "
            f"and there are {int(counts.min())}.",
            hint="Add samples of these categories, or use estimator='biased' (2 samples).",
        )


def _require_all(values: Tensor | None, size: int) -> Tensor:
    """A part's features; DatasetError unless they are of as many samples as were scored."""
    if values is None or len(values) < size:
        raise DatasetError(
            f"The data gave fewer samples when it was read again: {0 if values is None else len(values)} of {size}.",
            hint="Pass data that gives the same samples in every pass.",
        )
    return values


def _fill(
    coverage: Coverage,
    layer: str,
    categories: Sequence[int],
    values: Tensor,
    names: Iterable[OrderName],
    estimator: Estimator,
) -> None:
    """Set the curves of one group of samples: `categories` are those that it belongs to."""
    rows: list[tuple[OrderName, Sequence[int]]] = []
    for name in names:
        rows += [(name, [category]) for category in categories] if name.per_category else [(name, categories)]
    orders = [coverage.orders[layer, name][of[0]] for name, of in rows]
    try:
        curves = prefix_curves(values, orders, estimator).cpu()
    except DatasetError as error:
        raise DatasetError(f"Category {categories[0]}, layer {layer!r}: {error.message}", hint=error.hint) from error
    for (name, of), curve in zip(rows, curves, strict=True):
        coverage.curves[layer, name, estimator][of] = curve


def _order(
    name: OrderName, layer: SliceableLayer, scores: Mapping[MetricName, Contributions], categories: int
) -> Int64[Tensor, "categories neurons"]:
    """Each category's neurons, the first to keep in front; equal scores stay in the order of the layer."""
    if name.metric is None:
        return _random_order(layer.neurons, layer.name, name.drawn_for).repeat(categories, 1)
    by_category = scores[name.metric][layer.name]
    if name.overall:
        by_category = scores[name.metric].overall[layer.name].expand_as(by_category)
    return by_category.argsort(dim=1, descending=True, stable=True)


def _random_order(neurons: int, layer: str, purpose: str) -> Int64[Tensor, " neurons"]:
    """Depends on the layer's name and the purpose alone, not on what was drawn before."""
    seed = zlib.crc32(f"{purpose} {layer}".encode())
    return torch.randperm(neurons, generator=torch.Generator().manual_seed(seed))
