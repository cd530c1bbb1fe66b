"""The comparison as a page: who keeps the most accuracy, the curves, and every number behind them."""

from collections.abc import Iterator

from neusemslice.comparison.charts import CONTROL, NO_VALUE, Line, legend, line_chart, percent, percent_axis
from neusemslice.comparison.curves import AccuracyCurve
from neusemslice.comparison.layerwise import describe
from neusemslice.comparison.page import figure, folded, page, paragraph, table
from neusemslice.comparison.pilot_report import pilot_section
from neusemslice.comparison.results import COLUMNS, Comparison
from neusemslice.comparison.statistics import NEAR, TIE, Area, PairedTest, at_the_top, value_at
from neusemslice.config import cut_field

_SIGNIFICANT = 0.05


def to_html(comparison: Comparison) -> str:
    """One HTML file that needs no other and loads nothing. All names are escaped."""
    return page(
        "Slicing strategies compared",
        [
            "<h1>Slicing strategies compared</h1>",
            paragraph(summary(comparison), "lead"),
            _models(comparison),
            _curves(comparison),
            _layerwise(comparison),
            _areas(comparison),
            _equal_compression(comparison),
            _tests(comparison),
            *(pilot_section(study, comparison) for study in comparison.pilot),
            _settings(comparison),
        ],
    )


def summary(comparison: Comparison) -> str:
    """Who wins where, in two or three sentences."""
    if comparison.common_range is None:
        return "The curves have no range of compressions in common, so no strategy can be said to win."
    left_out = f" {_not_averaged(comparison)}" if comparison.left_out else ""
    if comparison.is_tied:
        return f"It is a tie: every strategy keeps {percent(comparison.areas[0].mean)} on average.{left_out}"
    wins: dict[str, list[str]] = {}
    for metric, strategies in comparison.leaders.items():
        who = strategies[0] if len(strategies) == 1 else f"{_listed(list(strategies))} (a tie)"
        wins.setdefault(who, []).append(metric)
    low, high = comparison.common_range
    every = f"with every metric ({_listed(list(comparison.winners))})"
    clauses = (
        f"{who} {every if metrics == list(comparison.winners) else f'with {_listed(metrics)}'}"
        for who, metrics in wins.items()
    )
    best = at_the_top(comparison.areas)
    named = f"is {_named(best[0])}" if len(best) == 1 else f"are {_listed(list(map(_named, best)))}, in a tie"
    return (
        f"Averaged over compressions from {percent(low, 0)} to {percent(high, 0)}, the most accuracy is kept by "
        f"{'; by '.join(clauses)}. Best of all {named}: {percent(best[0].mean)}{_against_control(comparison)}{left_out}"
    )


def _against_control(comparison: Comparison) -> str:
    """The end of the summary: what a random choice keeps, and what is no better than it."""
    control = next((area for area in comparison.areas if area.strategy == "random"), None)
    if control is None:
        return "."
    wins = control in at_the_top(comparison.areas)
    words = "." if wins else f", against {percent(control.mean)} of a random choice of neurons."
    equal = [_named(area) for area in comparison.areas if area != control and abs(area.mean - control.mean) <= TIE]
    worse = [_named(area) for area in comparison.areas if control.mean - area.mean > TIE]
    words += f" As good as the random choice, no better: {_listed(equal)}." if equal else ""
    return f"{words} Worse than the random choice: {_listed(worse)}." if worse else words


def _not_averaged(comparison: Comparison) -> str:
    """Why deeparc is not among the winners, and what it reaches all the same."""
    points = [point for curve in comparison.curves if curve.strategy == "deeparc" for point in curve.points]
    words = "deeparc has too few cuts, or too small ones, to be averaged"
    largest = max(points, key=lambda point: (point.compression_rate, point.accuracy), default=None)
    if largest is None or largest.compression_rate <= 0:
        return f"{words}: it removes nothing."
    return f"{words}: at most it removes {percent(largest.compression_rate)}, and keeps {percent(largest.accuracy)}."


def _named(area: Area) -> str:
    return area.strategy if area.metric is None else f"{area.strategy} with {area.metric}"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _models(comparison: Comparison) -> str:
    rows = [
        [model.name, f"{model.parameters:,}", f"{model.flops:,}", percent(model.accuracy, 2)]
        for model in comparison.models
    ]
    return table("", ["Whole network", "Parameters", "FLOPs a sample", "Accuracy"], rows)


def _curves(comparison: Comparison) -> str:
    groups = {metric: list(_lines(comparison, metric)) for metric in comparison.config.metrics}
    drawn = [point for lines in groups.values() for line in lines for point in line.points]
    whole = sum(model.accuracy for model in comparison.models) / len(comparison.models)
    x = percent_axis("parameters removed", [left for left, _ in drawn])
    y = percent_axis("accuracy", [whole, *(up for _, up in drawn)])
    level = (whole, f"whole network {percent(whole)}")
    charts = []
    for metric, lines in groups.items():
        title = f"Accuracy over compression with {metric}"
        chart = line_chart(title, "; ".join(map(_described, lines)), x, y, lines, level=level)
        charts.append(figure(metric, chart))
    seen = ", which the analysis has seen too" if comparison.evaluated_on == "train" else ""
    words = (
        "Every point is the network itself after the removal, without any training, evaluated on the "
        f"{comparison.evaluated_on} data{seen}."
    )
    if len(comparison.models) > 1:
        words += f" Bold lines are means over the {len(comparison.models)} models, thin lines are the models."
    named = {line.label: line for line in next(iter(groups.values())) if not line.faint}
    grid = f'<div class="charts">{"".join(charts)}</div>'
    return f"<h2>Accuracy over compression</h2>{paragraph(words)}{legend(list(named.values()))}{grid}"


def _layerwise(comparison: Comparison) -> str:
    """What deeparc's few points are, and why it may have no area."""
    curves = [curve for curve in comparison.curves if curve.strategy == "deeparc"]
    if not curves:
        return ""
    words = (
        "deeparc drops whole layers that are alike to CKA, whatever the metric, and sews the rest together with layers "
        "that are fitted to samples. It reaches no compression between its points."
    )
    if comparison.left_out:
        words += (
            " It has no area: that takes two compressions above zero, and half of the range that the other strategies "
            "cover, for every model."
        )
    return paragraph(words) + "".join(paragraph(describe(curve)) for curve in curves)


def _described(line: Line) -> str:
    return f"{line.label}: " + ", ".join(f"{percent(up)} at {percent(left)}" for left, up in line.points)


def _lines(comparison: Comparison, metric: str) -> Iterator[Line]:
    """The strategies' lines with one metric."""
    for number, strategy in enumerate(comparison.config.strategies):
        look = CONTROL if strategy == "random" else number
        curves = [c for c in comparison.curves if c.strategy == strategy and c.metric in (metric, None)]
        if len(curves) == 1 or strategy == "deeparc":
            yield from (_line(curve, look, comparison) for curve in curves)
            continue
        for curve in curves:
            yield Line(strategy, look, tuple(sorted(comparison.points_of(curve))), faint=True)
        means = [(x, _mean_at(comparison, curves, x)) for x in _compressions(comparison)]
        shown = [(x, mean) for x, mean in means if mean is not None]
        notes = (f"{strategy}: {percent(mean, 2)} at {percent(x)} removed" for x, mean in shown)
        yield Line(strategy, look, tuple(shown), tuple(notes))


def _line(curve: AccuracyCurve, look: int, comparison: Comparison) -> Line:
    """One model's line, each point with its note."""
    name = cut_field(curve.strategy)
    (whole,) = (model for model in comparison.models if model.name == curve.model)
    marks = [(0.0, whole.accuracy, f"whole network: {percent(whole.accuracy, 2)}")]
    for point in curve.points:
        words = f"{percent(point.accuracy, 2)} at {percent(point.compression_rate)} removed"
        details = f"{name} {point.cut:.4g}, {point.parameters:,} parameters"
        marks.append((point.compression_rate, point.accuracy, f"{curve.strategy}: {words} ({details})"))
    marks.sort()
    return Line(curve.strategy, look, tuple((x, y) for x, y, _ in marks), tuple(note for *_, note in marks))


def _compressions(comparison: Comparison) -> list[float]:
    """Where curves are read off: the compressions asked for, or every tenth."""
    return [0.0, *sorted(comparison.config.compressions or [tenth / 10 for tenth in range(1, 10)])]


def _mean_at(comparison: Comparison, curves: list[AccuracyCurve], x: float) -> float | None:
    found = [_at(comparison.points_of(curve), x, only_cuts=curve.strategy == "deeparc") for curve in curves]
    inside = [value for value in found if value is not None]
    return sum(inside) / len(inside) if inside and len(inside) == len(found) else None


def _at(points: list[tuple[float, float]], x: float, *, only_cuts: bool) -> float | None:
    """The line's height; of a strategy that reaches nothing between its cuts, only near one."""
    return value_at(points, x) if not only_cuts or any(abs(left - x) <= NEAR for left, _ in points) else None


def _areas(comparison: Comparison) -> str:
    if comparison.common_range is None:
        return ""
    metrics = comparison.config.metrics
    areas = {metric: comparison.areas_with(metric) for metric in metrics}
    rows = [
        [strategy, *(percent(areas[metric][strategy].mean, 2) for metric in metrics)]
        for strategy in comparison.config.strategies
        if strategy not in comparison.left_out
    ]
    names = [row[0] for row in rows]
    best = {
        (names.index(strategy), column)
        for column, metric in enumerate(metrics, start=1)
        for strategy in comparison.leaders[metric]
    }
    low, high = comparison.common_range
    words = (
        f"The area under each curve divided by the range that all curves cover, {percent(low)} to {percent(high)} of "
        "the parameters removed: the mean accuracy over that range. random and deeparc ignore the metric."
    )
    return f"<h2>Area under the curve</h2>{paragraph(words)}{table('', ['Strategy', *metrics], rows, best)}"


def _equal_compression(comparison: Comparison) -> str:
    wanted = _compressions(comparison)[1:]
    tables = []
    for metric in comparison.config.metrics:
        values = []
        for strategy in comparison.config.strategies:
            curves = [c for c in comparison.curves if c.strategy == strategy and c.metric in (metric, None)]
            values.append([_mean_at(comparison, curves, x) for x in wanted])
        best = {(row, column + 1) for column in range(len(wanted)) for row in _highest(values, column)}
        rows = [
            [strategy, *(percent(value, 2) for value in row)]
            for strategy, row in zip(comparison.config.strategies, values, strict=True)
        ]
        tables.append(table(metric, ["Strategy", *(percent(x, 0) for x in wanted)], rows, best))
    words = (
        "Read off the lines between the measured points; a dash where the strategy was not cut so far, and where "
        "deeparc has no point."
    )
    points = [
        [str(cell) if not isinstance(cell, float) else f"{cell:.5g}" for cell in ("" if c is None else c for c in row)]
        for row in comparison.rows()
    ]
    measured = folded(f"All {len(points)} measured points", table("", COLUMNS, points))
    return f"<h2>Accuracy at equal compression</h2>{paragraph(words)}{''.join(tables)}{measured}"


def _highest(values: list[list[float | None]], column: int) -> list[int]:
    """The rows with the largest value of a column; several if they are equal, none if it has no values."""
    present = {row: value for row, cells in enumerate(values) if (value := cells[column]) is not None}
    return [row for row, value in present.items() if max(present.values()) - value <= TIE]


def _tests(comparison: Comparison) -> str:
    if len(comparison.models) < 2:
        words = "With one model there is nothing to pair: compare several, such as one network trained anew each time."
        return f"<h2>Tests</h2>{paragraph(words, 'soft')}"
    header = ["Pair", "Difference", "95 % interval", "t", "p", "Cohen's d"]
    rows = [_test_row(test) for test in comparison.tests]
    best = {(row, 4) for row, test in enumerate(comparison.tests) if test.p is not None and test.p < _SIGNIFICANT}
    words = (
        f"The areas of two strategies, paired by model ({len(comparison.models)} models): two-sided t-test, not "
        "corrected for the number of tests; Cohen's d is the mean difference divided by the standard deviation of the "
        "differences. p below 0.05 stands out. A dash: the difference is the same for every model."
    )
    return f"<h2>Tests</h2>{paragraph(words)}{table('', header, rows, best)}"


def _test_row(test: PairedTest) -> list[str]:
    numbers = [f"{value:.3g}" if value is not None else NO_VALUE for value in (test.t, test.p, test.cohens_d)]
    interval = NO_VALUE if test.low is None or test.high is None else f"{_points(test.low)} to {_points(test.high)}"
    return [
        f"{test.metric}: {test.first} \N{MINUS SIGN} {test.second}",
        _points(test.mean_difference),
        interval,
        *numbers,
    ]


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def _settings(comparison: Comparison) -> str:
    values = comparison.config.to_dict()
    rows = [
        [name, ", ".join(f"{item}" for item in value) if isinstance(value, list) else f"{value}"]
        for name, value in values.items()
        if value != []
    ]
    return f"<h2>Settings</h2>{table('', ['Setting', 'Value'], rows)}"
