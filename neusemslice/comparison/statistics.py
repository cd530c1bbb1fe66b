"""How curves are summed up and told apart: area under the curve, paired t-test, Cohen's d."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
TIE = 1e-9
"""Areas that differ by no more are equal."""
NEAR = 0.005
"""A curve cut this near to a compression counts as cut there."""


@dataclass(frozen=True)
class Area:
    """Area under one strategy's curves of accuracy over compression: the mean accuracy over that range.

    Attributes:
        per_model: one area a model, in the order of the models.
    """

    strategy: str
    metric: str | None
    per_model: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the models."""
        return sum(self.per_model) / len(self.per_model)


def at_the_top(areas: Iterable[Area]) -> tuple[Area, ...]:
    """Those of the largest mean, which is one or more that are equal up to rounding; none of none."""
    areas = tuple(areas)
    best = max((area.mean for area in areas), default=0.0)
    return tuple(area for area in areas if best - area.mean <= TIE)


@dataclass(frozen=True)
class PairedTest:
    """Two strategies' areas with one metric, paired by model: a two-sided t-test, not corrected for many tests.

    Attributes:
        mean_difference: first minus second, with its confidence interval `low` to `high` (95 %).
        t, p: None where all differences are equal.
        cohens_d: mean difference / standard deviation of the differences (n - 1): the effect size of paired samples,
            d_z. None where all differences are equal.
    """

    metric: str
    first: str
    second: str
    models: int
    mean_difference: float
    low: float | None
    high: float | None
    t: float | None
    p: float | None
    cohens_d: float | None


def area_under(points: Sequence[tuple[float, float]], low: float, high: float) -> float:
    """Area under the straight lines between the points from `low` to `high`, divided by that range.

    Args:
        points: (x, y), in any order; points of equal x count as their mean. They cover the range.
    """
    xs, ys = _as_curve(points)
    inside = np.concatenate(([low], xs[(xs > low) & (xs < high)], [high]))
    return float(np.trapezoid(np.interp(inside, xs, ys), inside) / (high - low))


def value_at(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """The height of the straight lines between the points; None beyond them by more than `NEAR`."""
    xs, ys = _as_curve(points)
    return float(np.interp(x, xs, ys)) if xs[0] - NEAR <= x <= xs[-1] + NEAR else None


def paired_test(metric: str, areas: Mapping[str, Sequence[float]], first: str, second: str) -> PairedTest:
    """Is the first strategy's area larger than the second's, model by model? Needs two models."""
    differences = np.subtract(areas[first], areas[second])
    count, mean = len(differences), float(differences.mean())
    deviation = float(differences.std(ddof=1))
    if deviation <= 1e-12 * max(1.0, abs(mean)):
        return PairedTest(metric, first, second, count, mean, None, None, None, None, None)
    result = stats.ttest_rel(areas[first], areas[second])
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
    return PairedTest(
        metric,
        first,
        second,
        count,
        mean,
        mean - half,
        mean + half,
        float(result.statistic),
        float(result.pvalue),
        mean / deviation,
    )


def paired_tests(metric: str, areas: Mapping[str, Sequence[float]]) -> list[PairedTest]:
    """Every pair of strategies; none with a single model."""
    if len(next(iter(areas.values()), ())) < 2:
        return []
    return [paired_test(metric, areas, first, second) for first, second in itertools.combinations(areas, 2)]


def _as_curve(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Ascending x without repeats, and the mean y at each."""
    x, y = np.array(points, dtype=float).T
    xs, place = np.unique(x, return_inverse=True)
    return xs, np.bincount(place, y) / np.bincount(place)
