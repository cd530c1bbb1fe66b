"""What a comparison found, as one value, as JSON, as a table and as a page."""

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from neusemslice.comparison.curves import AccuracyCurve
from neusemslice.comparison.layerwise import is_comparable
from neusemslice.comparison.pilot import PilotStudy
from neusemslice.comparison.statistics import Area, PairedTest, area_under, at_the_top, paired_tests
from neusemslice.comparison_config import ComparisonConfig

COLUMNS = ("model", "strategy", "metric", "cut", "compression_rate", "parameters", "flops", "accuracy")
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a cell begins with that a spreadsheet calculates."""


@dataclass(frozen=True)
class ComparedModel:
    """A model before any cut."""

    name: str
    parameters: int
    flops: int
    accuracy: float
    per_category: tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Every measured point, and what follows from them.

    Attributes:
        categories: names of the categories, in label order.
        evaluated_on: the split that the accuracies are measured on.
        pilot: one study a model; empty if none was asked for.
    """

    config: ComparisonConfig
    categories: tuple[str, ...]
    evaluated_on: str
    models: tuple[ComparedModel, ...]
    curves: tuple[AccuracyCurve, ...]
    pilot: tuple[PilotStudy, ...]

    def points_of(self, curve: AccuracyCurve) -> list[tuple[float, float]]:
        """(compression, accuracy) of a curve, from the whole network on."""
        (whole,) = (model.accuracy for model in self.models if model.name == curve.model)
        return [(0.0, whole), *((point.compression_rate, point.accuracy) for point in curve.points)]

    @cached_property
    def left_out(self) -> tuple[str, ...]:
        """Strategies without an area: deeparc, if for one of the models it cannot be averaged beside the others."""
        of_layers = [curve for curve in self.curves if curve.strategy == "deeparc"]
        return () if all(is_comparable(curve, self.curves) for curve in of_layers) else ("deeparc",)

    @cached_property
    def common_range(self) -> tuple[float, float] | None:
        """The compressions that every curve with an area covers, from the whole network's on; None if there is none."""
        high = min((curve.reach for curve in self.curves if curve.strategy not in self.left_out), default=0.0)
        return (0.0, high) if high > 0 else None

    @cached_property
    def areas(self) -> tuple[Area, ...]:
        """Mean accuracy over the common range of each strategy and metric; empty if there is no such range."""
        if self.common_range is None:
            return ()
        found: dict[tuple[str, str | None], list[float]] = {}
        for curve in (curve for curve in self.curves if curve.strategy not in self.left_out):
            area = area_under(self.points_of(curve), *self.common_range)
            found.setdefault((curve.strategy, curve.metric), []).append(area)
        return tuple(Area(strategy, metric, tuple(values)) for (strategy, metric), values in found.items())

    def areas_with(self, metric: str) -> dict[str, Area]:
        """The areas of one metric by strategy, those that ignore the metric beside them."""
        return {area.strategy: area for area in self.areas if area.metric in (metric, None)}

    @cached_property
    def winners(self) -> dict[str, str]:
        """For each metric the strategy of the largest mean area; the first named, of equals (see `ties`)."""
        return {metric: strategies[0] for metric, strategies in self.leaders.items()}

    @cached_property
    def leaders(self) -> dict[str, tuple[str, ...]]:
        """For each metric the strategies of the largest mean area: one, or several if they are equal up to rounding."""
        return {
            metric: tuple(area.strategy for area in at_the_top(self.areas_with(metric).values()))
            for metric in self.config.metrics
            if self.areas
        }

    @property
    def ties(self) -> dict[str, tuple[str, ...]]:
        """The metrics with several leaders, whose winner is only the first that was named."""
        return {metric: strategies for metric, strategies in self.leaders.items() if len(strategies) > 1}

    @property
    def is_tied(self) -> bool:
        """Whether all areas are equal, up to rounding."""
        return len(self.areas) > 1 and at_the_top(self.areas) == self.areas

    @cached_property
    def tests(self) -> tuple[PairedTest, ...]:
        """Pairs of strategies for each metric, over the models; empty with a single model."""
        return tuple(
            test
            for metric in self.config.metrics
            for test in paired_tests(metric, {name: area.per_model for name, area in self.areas_with(metric).items()})
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what could not be computed is absent or null, never NaN."""
        found = {
            "config": self.config.to_dict(),
            "categories": self.categories,
            "evaluated_on": self.evaluated_on,
            "models": [asdict(model) for model in self.models],
            "curves": [asdict(curve) for curve in self.curves],
            "common_range": self.common_range,
            "left_out": self.left_out,
            "areas": [asdict(area) | {"mean": area.mean} for area in self.areas],
            "winners": self.winners,
            "ties": self.ties,
            "tests": [asdict(test) for test in self.tests],
            "pilot": [asdict(study) for study in self.pilot],
        }
        plain: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
        return plain

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """One for each point, in the order of `COLUMNS`."""
        for curve in self.curves:
            for point in curve.points:
                values = asdict(curve) | asdict(point)
                yield tuple(values[column] for column in COLUMNS)

    def write(self, folder: str | Path) -> None:
        """Write comparison.json, comparison.csv (one row a point) and report.html (one file that needs no other)."""
        from neusemslice.comparison.report import to_html

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "comparison.json").write_text(json.dumps(self.to_dict(), indent=2), encoding="utf-8")
        with (folder / "comparison.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            table.writerows(map(_defused, self.rows()))
        (folder / "report.html").write_text(to_html(self), encoding="utf-8")


def _defused(row: tuple[Any, ...]) -> list[Any]:
    """Text that a spreadsheet would take for a formula gets an apostrophe in front; numbers stay numbers."""
    return [f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in row]
