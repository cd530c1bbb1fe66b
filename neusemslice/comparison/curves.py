"""Compression against accuracy: what a slice reaches at each of its cuts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from neusemslice.batches import Batches
from neusemslice.comparison_config import METRIC_FREE
from neusemslice.errors import DatasetError, UnsupportedModelError
from neusemslice.evaluation import evaluate
from neusemslice.progress import ShouldStop
from neusemslice.restructuring import Restructured, restructure
from neusemslice.slicing import ModelSlice
from neusemslice.tracing import SliceableModel

Accuracies = tuple[float, tuple[float | None, ...]]
"""Overall, and of each category."""


@dataclass(frozen=True)
class Point:
    """The restructured network at one cut.

    Attributes:
        cut: theta, or the fraction kept.
        compression_rate: share of the parameters removed; below zero where deeparc's sewing layers add some.
        flops: of one forward pass on one sample.
        per_category: accuracy of each category, None where it has no samples.
    """

    cut: float
    compression_rate: float
    parameters: int
    flops: int
    accuracy: float
    per_category: tuple[float | None, ...]


@dataclass(frozen=True)
class AccuracyCurve:
    """One model cut by one strategy.

    Attributes:
        metric: None where the strategy ignores it.
        unsewn: thresholds of deeparc that have no point, since no sewing layer fits what they take out.
    """

    model: str
    strategy: str
    metric: str | None
    points: tuple[Point, ...]
    unsewn: tuple[float, ...] = ()

    @property
    def reach(self) -> float:
        """The largest compression."""
        return max((point.compression_rate for point in self.points), default=0.0)


def measure_curve(
    name: str,
    model: SliceableModel,
    slice_: ModelSlice,
    cuts: Sequence[float],
    test: Batches,
    calibration: Batches,
    tick: Callable[[], None],
    should_stop: ShouldStop | None,
) -> AccuracyCurve:
    """Each cut's restructured network, evaluated.

    Args:
        name: of the model.
        calibration: what deeparc's sewing layers are fitted to.
        tick: called after each cut.
    """
    strategy, points, unsewn = slice_.config.strategy, [], []
    for cut in cuts:
        try:
            smaller = restructure(model, slice_.at(cut), calibration=calibration, should_stop=should_stop)
        except UnsupportedModelError:
            if strategy != "deeparc":
                raise
            unsewn.append(cut)
        else:
            points.append(_measure(cut, smaller, test, should_stop))
        tick()
    metric = None if strategy in METRIC_FREE else slice_.config.metric
    return AccuracyCurve(name, strategy, metric, tuple(points), tuple(unsewn))


def _measure(cut: float, smaller: Restructured, test: Batches, should_stop: ShouldStop | None) -> Point:
    accuracy, per_category = measure_accuracy(smaller.model, test, should_stop)
    report = smaller.report
    return Point(cut, report.compression_rate, report.parameters_after, report.flops_after, accuracy, per_category)


def measure_accuracy(network: nn.Module | SliceableModel, data: Batches, should_stop: ShouldStop | None) -> Accuracies:
    """Accuracy overall, and of each category (None where it has no samples).

    Raises:
        DatasetError: the data has no categories, so that there is no accuracy.
    """
    found = evaluate(network, data, should_stop=should_stop)
    if found.accuracy is None:
        raise DatasetError(
            "Strategies are compared by accuracy, and data with real numbers as labels has none.",
            hint="Compare on data whose labels are categories.",
        )
    return found.accuracy, found.per_category
