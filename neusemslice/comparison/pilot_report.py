"""The pilot study's part of the page: two charts and the numbers of the paper's three tables."""

from html import escape

from neusemslice.comparison.charts import CONTROL, NO_VALUE, Line, label_axis, legend, line_chart, percent, percent_axis
from neusemslice.comparison.page import figure, folded, paragraph, table
from neusemslice.comparison.pilot import RANGES, PilotStudy, Ranking
from neusemslice.comparison.results import Comparison

_TENTHS = tuple(f"{100 * number // RANGES}{NO_VALUE}{100 * (number + 1) // RANGES}" for number in range(RANGES))


def pilot_section(study: PilotStudy, comparison: Comparison) -> str:
    """What silencing each tenth of the neurons does to one model."""
    (whole,) = (model for model in comparison.models if model.name == study.model)
    overall = [_line(number, ranking, ranking.overall) for number, ranking in enumerate(study.rankings)]
    own = [
        _line(number, ranking, means)
        for number, ranking in enumerate(study.rankings)
        if (means := ranking.own_mean()) is not None
    ]
    own += [line for line in overall if line.look == CONTROL]
    x = label_axis("range of the contribution order that is silenced in every layer, %", _TENTHS)
    y = percent_axis("accuracy", [whole.accuracy, *(up for line in overall + own for _, up in line.points)])
    level = (whole.accuracy, f"whole network {percent(whole.accuracy)}")
    charts = [
        figure(
            title,
            line_chart(f"Pilot study, {title.lower()}", _described(lines), x, y, lines, level=level),
        )
        for title, lines in (
            ("By the order over all data, accuracy overall", overall),
            ("By each category's own order, accuracy of that category", own),
        )
    ]
    words = (
        "The neurons of each layer are put in contribution order, and a tenth of every layer is silenced at a time, "
        "the most contributing first. A metric that is right about what contributes loses most at the left and nearly "
        "nothing at the right. The grey line silences tenths drawn at random."
    )
    rows = [[_name(ranking), *(percent(value, 2) for value in ranking.overall)] for ranking in study.rankings]
    tables = [table("By the order over all data, accuracy overall", ["Metric", *_TENTHS], rows)]
    rows = [
        [_name(ranking), *(percent(value, 2) for value in means)]
        for ranking in study.rankings
        if (means := ranking.own_mean()) is not None
    ]
    rows += [
        [_name(other), *(percent(value, 2) for value in other.overall)] for other in study.rankings if not other.own
    ]
    tables.append(
        table(f"By each category's own order, mean over {len(study.categories)} categories", ["Metric", *_TENTHS], rows)
    )
    details = "".join(_categories(ranking, study, comparison) for ranking in study.rankings if ranking.own is not None)
    heading = "Pilot study" if len(comparison.models) == 1 else f"Pilot study: {study.model}"
    return (
        f"<h2>{escape(heading)}</h2>{paragraph(words)}{legend(overall)}"
        f'<div class="charts">{"".join(charts)}</div>{"".join(tables)}{folded("Each category", details)}'
    )


def _line(number: int, ranking: Ranking, values: tuple[float, ...]) -> Line:
    notes = (f"{_name(ranking)}: {percent(value, 2)} without {_TENTHS[tenth]} %" for tenth, value in enumerate(values))
    look = CONTROL if ranking.metric is None else number
    return Line(_name(ranking), look, tuple((float(tenth), value) for tenth, value in enumerate(values)), tuple(notes))


def _categories(ranking: Ranking, study: PilotStudy, comparison: Comparison) -> str:
    """Each category's accuracy without a tenth of its own order, of the order over all data, of a random order."""
    assert ranking.own is not None
    (control,) = (other for other in study.rankings if other.metric is None)
    rows = []
    for place, category in enumerate(study.categories):
        name = comparison.categories[category]
        random = [tenth[category] or 0.0 for tenth in control.overall_per_category]
        rows.append([f"{name}, own order", *(percent(tenth[place]) for tenth in ranking.own)])
        rows[-1].append(percent(sum(random) / RANGES))
        rows.append(["order over all data", *(percent(tenth[category]) for tenth in ranking.overall_per_category), ""])
    return table(_name(ranking), ["Category", *_TENTHS, "a random tenth"], rows)


def _name(ranking: Ranking) -> str:
    return ranking.metric or "random"


def _described(lines: list[Line]) -> str:
    return "; ".join(f"{line.label}: " + ", ".join(percent(up) for _, up in line.points) for line in lines)
