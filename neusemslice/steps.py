"""The cuts that a slice can make, in order, and what each removes.

What a cut keeps changes only where the cut passes a value of a curve (semantic) or a share k / n of a layer's neurons
(the other strategies). Between two such steps all cuts are the same, so the steps are all there is to search.
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from neusemslice.config import Branches, cut_field
from neusemslice.model_slice import ModelSlice
from neusemslice.profiling import count_parameters
from neusemslice.progress import Progress
from neusemslice.restructuring import parameters_after
from neusemslice.selection import scanned_counts
from neusemslice.tracing import SliceableModel

TOLERANCE = 0.005
"""Cuts whose compressions differ by no more than this are as good as each other."""


def cut_steps(slice_: ModelSlice) -> Float64[Tensor, " steps"]:
    """A cut for each choice of neurons that a slice can make, in ascending order: what is kept only grows.

    Each lies in the middle of the cuts that make its choice, so that rounding cannot change it.
    """
    if slice_.config.strategy == "semantic":
        highest = [
            curves[:, scanned_counts(curves.shape[1], slice_.config.increment) - 1].cummax(1).values.flatten()
            for curves in slice_.curves.values()
        ]
        ends = torch.cat(highest).clamp(max=1.0)
    else:
        sizes = sorted({order.shape[1] for order in slice_.orders.values()})
        ends = torch.cat([torch.arange(1, size + 1, dtype=torch.float64) / size for size in sizes])
    ends = ends[ends > 0].unique()
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    middles = (starts + ends) / 2
    return torch.where(middles > starts, middles, ends)


class Steps:
    """The cuts of a slice, in ascending order, with the compression at each. It falls as the cut rises."""

    def __init__(self, model: SliceableModel, slice_: ModelSlice, branches: Branches, progress: Progress) -> None:
        self.model, self.branches, self._slice, self._progress = model, branches, slice_, progress
        self._before = count_parameters(model.graph_module)
        self._known: dict[int, float] = {}
        self.cuts: list[float] = cut_steps(slice_).tolist()

    def at(self, place: int) -> ModelSlice:
        """The slice at that step."""
        return self._slice.at(self.cuts[place])

    def compression(self, place: int) -> float:
        """Share of the parameters that the step removes."""
        if place not in self._known:
            self._progress.report("target", 0, 1)
            left = parameters_after(self.model, self.at(place).merged(), self.branches)
            self._known[place] = 1 - left / self._before
        return self._known[place]

    def first_at_most(self, compression: float) -> int:
        """The lowest cut that removes no more than that; the highest cut if all remove more."""
        low, high = 0, len(self.cuts) - 1
        while low < high:
            middle = (low + high) // 2
            if self.compression(middle) <= compression:
                high = middle
            else:
                low = middle + 1
        return low

    def describe(self, place: int) -> str:
        """What the step does, for a message."""
        field = cut_field(self._slice.config.strategy)
        return f"{field}={self.cuts[place]:.6g} removes {self.compression(place):.2%}"
