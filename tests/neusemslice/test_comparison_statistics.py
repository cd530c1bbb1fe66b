"""Areas and paired tests, against hand-computed cases and scipy."""

import math

import pytest
from scipy import stats

from neusemslice.comparison.statistics import area_under, paired_test, paired_tests, value_at

AREAS = {"semantic": (0.90, 0.80, 0.85), "random": (0.70, 0.75, 0.70)}


@pytest.mark.parametrize(
    ("points", "low", "high", "area"),
    [
        ([(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)], 0.0, 1.0, 0.5),
        ([(1.0, 0.0), (0.0, 1.0)], 0.0, 0.75, 0.625),
        ([(0.0, 0.9), (0.4, 0.9), (0.4, 0.7), (0.8, 0.8)], 0.0, 0.8, (0.4 * 0.85 + 0.4 * 0.8) / 0.8),
        ([(0.0, 0.2), (0.2, 0.6)], 0.05, 0.15, 0.4),
    ],
)
def test_the_area_is_the_mean_height(points: list[tuple[float, float]], low: float, high: float, area: float) -> None:
    assert area_under(points, low, high) == pytest.approx(area, abs=1e-12)


def test_values_between_points_and_none_beyond_them() -> None:
    points = [(0.0, 1.0), (0.5, 0.6)]
    assert value_at(points, 0.25) == pytest.approx(0.8)
    assert value_at(points, 0.504) == 0.6
    assert value_at(points, 0.51) is None


def test_the_paired_test_by_hand_and_by_scipy() -> None:
    found = paired_test("taylor", AREAS, "semantic", "random")
    # differences 0.2, 0.05, 0.15: mean 2/15, deviations 1/15, -1/12, 1/60 with squares summing to 7/600
    deviation = math.sqrt(7 / 600 / 2)
    assert found.mean_difference == pytest.approx(2 / 15)
    assert found.cohens_d == pytest.approx(2 / 15 / deviation)
    assert found.t == pytest.approx(2 / 15 / deviation * math.sqrt(3))
    # with two degrees of freedom the t distribution has a closed form
    assert found.p == pytest.approx(1 - found.t / math.sqrt(2 + found.t**2))
    result = stats.ttest_rel(AREAS["semantic"], AREAS["random"])
    interval = result.confidence_interval(0.95)
    assert (found.t, found.p) == pytest.approx((result.statistic, result.pvalue))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_equal_differences_have_no_test() -> None:
    found = paired_test("avg", {"a": (0.5, 0.6, 0.7), "b": (0.4, 0.5, 0.6)}, "a", "b")
    assert found.mean_difference == pytest.approx(0.1)
    assert (found.t, found.p, found.cohens_d, found.low, found.high) == (None,) * 5


def test_every_pair_is_tested_and_none_with_one_model() -> None:
    three = AREAS | {"global": (0.6, 0.9, 0.8)}
    pairs = [(test.first, test.second) for test in paired_tests("avg", three)]
    assert pairs == [("semantic", "random"), ("semantic", "global"), ("random", "global")]
    assert paired_tests("avg", {name: areas[:1] for name, areas in three.items()}) == []
    assert paired_tests("avg", {}) == []
