"""Line charts as SVG text: percent against percent or against labels, readable on light and dark ground."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 14.0, 26.0, 44.0
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25)
_MOST_TICKS = 7
_LEAST_SPREAD = 0.02
# Each has a contrast of at least 3 to 1 on white and on near-black; shapes tell apart what colours may not.
COLOURS = ("#2f7ed8", "#d97706", "#0d9488", "#9b5de5", "#dc4c4c", "#5a9a1f", "#d946a6", "#0891b2", "#a16207")
_SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-4.8L4.6 3.6h-9.2z",
    "M0-5L5 0L0 5L-5 0z",
)
NO_VALUE = "\N{EN DASH}"
_DOTS = 'stroke-dasharray="2 3"'
CONTROL = -1
"""The look of what a random choice gives: grey and dashed."""


@dataclass(frozen=True)
class Line:
    """Points joined by straight lines.

    Attributes:
        look: colour and shape, by number; CONTROL is grey and dashed.
        notes: what the pointer shows at each point; no points are marked without.
    """

    label: str
    look: int
    points: tuple[tuple[float, float], ...]
    notes: tuple[str, ...] = ()
    faint: bool = False


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with the places and words of its ticks."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]


def percent(share: float | None, digits: int = 1) -> str:
    """A share as percent, a dash for none."""
    return NO_VALUE if share is None else f"{100 * share:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def percent_axis(label: str, values: Sequence[float]) -> Axis:
    """An axis with round ticks around the values."""
    low, high = min(values), max(*values, min(values) + _LEAST_SPREAD)
    step = next((step for step in _STEPS if (high - low) / step <= _MOST_TICKS - 1), _STEPS[-1])
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    digits = 0 if step >= 0.01 else 1
    ticks = tuple((number * step, percent(number * step, digits)) for number in range(first, last + 1))
    return Axis(label, first * step, last * step, ticks)


def label_axis(label: str, names: Sequence[str]) -> Axis:
    """An axis of evenly spread names, the first at 0 and the last at `len(names) - 1`."""
    return Axis(label, -0.3, len(names) - 0.7, tuple((float(number), name) for number, name in enumerate(names)))


def line_chart(
    title: str, description: str, x: Axis, y: Axis, lines: Sequence[Line], *, level: tuple[float, str] | None = None
) -> str:
    """The chart as one `<svg>` element. All text is escaped.

    Args:
        title, description: what a screen reader says.
        level: a height to mark across the chart, with its words.
    """

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - x.low) / (x.high - x.low)
        up = (point[1] - y.low) / (y.high - y.low)
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    look = 'font-size="11" font-family="system-ui, sans-serif" fill="currentColor"'
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" {look}>',
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>",
    ]
    for value, words in y.ticks:
        height = place((x.low, value))[1]
        parts += [_rule(_LEFT, height, WIDTH - _RIGHT, height, 0.13), _text(_LEFT - 7, height + 4, words, "end")]
    for value, words in x.ticks:
        across = place((value, y.low))[0]
        parts += [_rule(across, HEIGHT - _BOTTOM, across, HEIGHT - _BOTTOM + 4, 0.4)]
        parts += [_text(across, HEIGHT - _BOTTOM + 17, words, "middle")]
    parts += [_rule(_LEFT, HEIGHT - _BOTTOM, WIDTH - _RIGHT, HEIGHT - _BOTTOM, 0.4)]
    parts += [_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6.0, x.label, "middle", 0.75)]
    parts += [_text(4.0, 13.0, y.label, "start", 0.75)]
    if level is not None:
        height = place((x.low, level[0]))[1]
        parts += [_rule(_LEFT, height, WIDTH - _RIGHT, height, 0.6, _DOTS)]
        parts += [_text(WIDTH - _RIGHT, 13.0, level[1], "end", 0.75)]
        width = 6.2 * len(level[1])
        parts += [_rule(WIDTH - _RIGHT - width - 26, 9.0, WIDTH - _RIGHT - width - 4, 9.0, 0.6, _DOTS)]
    for line in lines:
        parts += _draw(line, [place(point) for point in line.points])
    return "".join([*parts, "</svg>"])


def legend(lines: Sequence[Line]) -> str:
    """The lines' names beside their looks, as a list."""
    items = (
        f'<li><svg viewBox="0 0 30 12" width="30" height="12" aria-hidden="true">'
        f"{_path([(1.0, 6.0), (29.0, 6.0)], line)}{_mark(15.0, 6.0, line)}</svg>{escape(line.label)}</li>"
        for line in lines
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _draw(line: Line, places: Sequence[tuple[float, float]]) -> list[str]:
    marks = [
        f"<g><title>{escape(note)}</title>"
        f'<circle cx="{left:.1f}" cy="{top:.1f}" r="10" fill="none" pointer-events="all"/>{_mark(left, top, line)}</g>'
        for (left, top), note in zip(places, line.notes, strict=False)
    ]
    return [_path(places, line), *marks]


def _path(places: Sequence[tuple[float, float]], line: Line) -> str:
    dash = ' stroke-dasharray="6 4"' if line.look == CONTROL else ""
    weak = 'stroke-width="1" stroke-opacity="0.35"' if line.faint else 'stroke-width="2"'
    steps = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
    return f'<polyline points="{steps}" fill="none" stroke="{_colour(line)}" stroke-linejoin="round" {weak}{dash}/>'


def _mark(left: float, top: float, line: Line) -> str:
    shape = _SHAPES[line.look % len(_SHAPES)]
    return f'<path d="{shape}" transform="translate({left:.1f} {top:.1f})" fill="{_colour(line)}"/>'


def _colour(line: Line) -> str:
    return "#7f8791" if line.look == CONTROL else COLOURS[line.look % len(COLOURS)]


def _rule(left: float, top: float, right: float, bottom: float, opacity: float, more: str = "") -> str:
    ends = f'x1="{left:.1f}" y1="{top:.1f}" x2="{right:.1f}" y2="{bottom:.1f}"'
    return f'<line {ends} stroke="currentColor" stroke-opacity="{opacity}" {more}/>'


def _text(left: float, top: float, words: str, anchor: str, opacity: float = 0.85) -> str:
    place = f'x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}" fill-opacity="{opacity}"'
    return f"<text {place}>{escape(words)}</text>"
