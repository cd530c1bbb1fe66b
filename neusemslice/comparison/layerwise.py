"""What there is to say about deeparc beside the other strategies: it drops whole layers, so its cuts are few."""

from collections.abc import Sequence

from neusemslice.comparison.charts import percent
from neusemslice.comparison.curves import AccuracyCurve

LEAST_COVER = 0.5
"""Share of the other strategies' range that deeparc has to reach to be averaged beside them."""


def is_comparable(curve: AccuracyCurve, curves: Sequence[AccuracyCurve]) -> bool:
    """Whether deeparc's curve may be averaged with the same model's others, over a range that it may narrow.

    It needs two compressions above zero (its sewing layers may even make a network larger), and has to reach half as
    far as the other strategies do.
    """
    others = [other.reach for other in curves if other.model == curve.model and other.strategy != "deeparc"]
    rates = {point.compression_rate for point in curve.points if point.compression_rate > 0}
    return len(rates) >= 2 and curve.reach >= LEAST_COVER * min(others, default=0.0)


def describe(curve: AccuracyCurve) -> str:
    """What deeparc does to one model, in sentences."""
    rates = [point.compression_rate for point in curve.points]
    least, most = percent(min(rates, default=0.0)), percent(max(rates, default=0.0))
    found = "removes nothing" if least == most == percent(0.0) else f"removes {_range(least, most)} of the parameters"
    words = [f"On {curve.model}, deeparc {found}."] if rates else []
    larger = [point.cut for point in curve.points if point.compression_rate < 0]
    if larger:
        words.append(f"At {_thresholds(larger)} its sewing layers are larger than what they replace.")
    if curve.unsewn:
        words.append(f"At {_thresholds(curve.unsewn)} no sewing layer fits {curve.model}, so there is no point.")
    return " ".join(words)


def _range(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}"


def _thresholds(cuts: Sequence[float]) -> str:
    return f"threshold{'s' if len(cuts) > 1 else ''} {', '.join(f'{cut:g}' for cut in cuts)}"
