"""Which cuts of a slice come nearest to wanted compressions."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from neusemslice.progress import Progress
from neusemslice.restructuring import parameters_after
from neusemslice.slicing import ModelSlice
from neusemslice.tracing import SliceableModel


def find_cuts(
    model: SliceableModel, slice_: ModelSlice, compressions: Sequence[float], parameters: int, progress: Progress
) -> list[float]:
    """For each compression the cut whose compression is nearest, each cut once, the largest cut first.

    What is kept changes at finitely many cuts and only grows with the cut, so bisection over those finds the nearest.

    Args:
        parameters: of the whole model.
    """
    steps = _steps(slice_)
    known: dict[int, float] = {}

    def compression(step: int) -> float:
        if step not in known:
            progress.report("cuts", 0, 1)
            known[step] = 1 - parameters_after(model, slice_.at(float(steps[step])).merged()) / parameters
        return known[step]

    found = {_nearest(compression, len(steps), wanted) for wanted in compressions}
    return [float(steps[step]) for step in sorted(found, reverse=True)]


def _nearest(compression: Callable[[int], float], steps: int, wanted: float) -> int:
    """The step whose compression is nearest to the wanted; compression falls with the step."""
    low, high = 0, steps - 1
    while low < high:
        middle = (low + high) // 2
        if compression(middle) <= wanted:
            high = middle
        else:
            low = middle + 1
    neighbours = (low, max(0, low - 1))
    return min(neighbours, key=lambda step: abs(compression(step) - wanted))


def _steps(slice_: ModelSlice) -> Float64[Tensor, " steps"]:
    """Every cut at which the slice changes, ascending.

    A prefix is the first to reach its coverage only where the curve rises above all before it.
    """
    if slice_.config.strategy == "semantic":
        rising = torch.cat([curve.cummax(1).values.flatten() for curve in slice_.curves.values()])
        steps: Tensor = torch.unique(rising[rising > 0].clamp(max=1))
        return steps
    sizes = {order.shape[1] for order in slice_.orders.values()}
    shares: Tensor = torch.unique(torch.cat([torch.arange(1, size + 1).double() / size for size in sizes]))
    return shares
