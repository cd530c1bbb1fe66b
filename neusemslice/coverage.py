"""Orders of the neurons, and how much of its layer each prefix of an order covers, for many configs at once."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float64, Int64
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
        example: one sample, [1, *input shape].
    """

    plan: Plan
    categories: list[list[int]]
    example: Tensor


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
    for config in configs:
        _require_enough_samples(counts, config.estimator)
    samples = _samples(model, data, counts, configs[0])
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
    read = layer_reader(model)
    with torch.no_grad():
        shapes = read(samples.example)
    done, total = 0, len(model.sliceable_layers) * model.categories
    for parts in samples.plan.passes(shapes, min(config.memory_budget_bytes for config in configs)):
        features = collect_features(
            model, data, read, samples.plan, parts, partial(progress.report, "coverage", done, total)
        )
        for part in parts:
            values, categories = _require_all(features, part, samples.plan), samples.categories[part[1]]
            for estimator, names in wanted.items():
                _fill(coverage, part[0], categories, values, names, estimator)
            done += len(categories)
            progress.report("coverage", done, total)
    return coverage


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


def _samples(
    model: SliceableModel, data: Batches, counts: Int64[Tensor, " categories"], config: SlicingConfig
) -> Samples:
    inputs, labels = next(batch for batch in check_batches(data, model) if len(batch[0]))
    sizes = counts.clamp(max=config.samples_per_category).tolist()
    if is_regression(labels):
        plan = Plan(sizes[:1], lambda labels: torch.zeros(len(labels), dtype=torch.long), config.landscape)
        return Samples(plan, [list(range(model.categories))], inputs[:1])
    plan = Plan(sizes, lambda labels: labels, config.landscape)
    return Samples(plan, [[category] for category in range(model.categories)], inputs[:1])


def _require_all(features: Mapping[Part, Tensor], part: Part, plan: Plan) -> Tensor:
    """The part's features; DatasetError unless they are of as many samples as were scored."""
    values = features.get(part)
    if values is None or len(values) < plan.sizes[part[1]]:
        raise DatasetError(
            f"The data gave fewer samples when it was read again: {0 if values is None else len(values)} of "
            f"{plan.sizes[part[1]]}.",
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
