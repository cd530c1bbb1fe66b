"""Which cuts of a slice come nearest to wanted compressions."""

from collections.abc import Callable, Sequence

from neusemslice.progress import Progress
from neusemslice.restructuring import parameters_after
from neusemslice.slicing import ModelSlice
from neusemslice.steps import cut_steps
from neusemslice.tracing import SliceableModel


def find_cuts(
    model: SliceableModel, slice_: ModelSlice, compressions: Sequence[float], parameters: int, progress: Progress
) -> list[float]:
    """For each compression the cut whose compression is nearest, each cut once, the largest cut first.

    Unlike a target, a compression that no cut comes near is no error: the nearest point belongs to the curve.

    Args:
        parameters: of the whole model.
    """
    steps: list[float] = cut_steps(slice_).tolist()
    known: dict[int, float] = {}

    def compression(step: int) -> float:
        if step not in known:
            progress.report("cuts", 0, 1)
            known[step] = 1 - parameters_after(model, slice_.at(steps[step]).merged()) / parameters
        return known[step]

    found = {_nearest(compression, len(steps), wanted) for wanted in compressions}
    return [steps[step] for step in sorted(found, reverse=True)]


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
