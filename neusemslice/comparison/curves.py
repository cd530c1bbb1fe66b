"""Compression against accuracy: what a slice reaches at each of its cuts."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from neusemslice.batches import Batches
from neusemslice.errors import DatasetError
from neusemslice.evaluation import evaluate
from neusemslice.progress import Progress, ShouldStop
from neusemslice.restructuring import restructure
from neusemslice.slicing import ModelSlice
from neusemslice.tracing import SliceableModel

Accuracies = tuple[float, tuple[float | None, ...]]
"""Overall, and of each category."""


@dataclass(frozen=True)
class Point:
    """The restructured network at one cut.

    Attributes:
        cut: theta, or the fraction kept.
        compression_rate: share of the parameters removed.
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
    """One model cut by one strategy; `metric` is None where the strategy ignores it."""

    model: str
    strategy: str
    metric: str | None
    points: tuple[Point, ...]


def measure_points(
    model: SliceableModel,
    slice_: ModelSlice,
    cuts: Sequence[float],
    test: Batches,
    progress: Progress,
    done: int,
    total: int,
) -> tuple[Point, ...]:
    """Each cut's restructured network, evaluated. `done` of `total` evaluations came before."""
    points = []
    for number, cut in enumerate(cuts, start=1):
        smaller = restructure(model, slice_.at(cut), should_stop=progress.should_stop)
        accuracy, per_category = measure_accuracy(smaller.model, test, progress.should_stop)
        report = smaller.report
        rate, parameters, flops = report.compression_rate, report.parameters_after, report.flops_after
        points.append(Point(cut, rate, parameters, flops, accuracy, per_category))
        progress.report("evaluate", done + number, total)
    return tuple(points)


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
