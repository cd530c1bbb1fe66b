"""The ways to bring one layer of the smaller network back to what it gave in the original one."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, fx, nn

from neusemslice.kernel_least_squares import KernelLeastSquares
from neusemslice.least_squares import LeastSquares, relative
from neusemslice.reconstruction.frontier import RUN_BYTES
from neusemslice.reconstruction.layer_rows import LayerRows, Positions
from neusemslice.reconstruction.report import LayerFit
from neusemslice.roles import NORMS

ROWS_PER_INPUT = 8
"""More rows than this for each unknown of an output are not looked at."""
FEWEST_ROWS = 4096
"""But so many in any case, if there are."""
WIDEST = 4096
"""Inputs whose normal matrix is still built; of wider layers at most as many rows are looked at."""


@dataclass(frozen=True, eq=False)
class Place:
    """A layer of the smaller network, and what it should give.

    Attributes:
        node: in the smaller network's graph.
        reads: what the layer reads there, now.
        wanted: what the whole layer should give.
        kept: which of its outputs are left.
    """

    node: fx.Node
    network: fx.GraphModule
    reads: Float[Tensor, "samples ..."]
    wanted: Float[Tensor, "samples ..."]
    kept: Int64[Tensor, " kept"]

    @property
    def layer(self) -> nn.Module:
        return self.network.get_submodule(str(self.node.target))


def refit(place: Place) -> LayerFit:
    """Correct weight and bias by ridge regression of what is missing on what the layer reads."""
    rows = LayerRows(place.layer)
    at, every = _positions(rows, place.wanted)
    samples = len(at)
    few = samples * at.shape[1] <= rows.inputs or rows.inputs > WIDEST
    regression = KernelLeastSquares() if few else LeastSquares()
    spread = Spread(rows.groups, rows.outputs)
    for inputs, targets in _parts(rows, place, at, every):
        missing = targets - _given(place.layer, rows, inputs).double()
        spread.add(targets, missing)
        regression.add(inputs, missing)
    found = regression.solve()
    rows.add(found.weight)
    shift(place, found.bias.flatten())
    return LayerFit(spread.of(spread.missing), spread.of(found.error), found.penalty)


def shift_to_mean(place: Place) -> LayerFit:
    """Correct the bias, so that each output's mean is what it was."""
    rows = LayerRows(place.layer)
    at, every = _positions(rows, place.wanted)
    spread = Spread(rows.groups, rows.outputs)
    for inputs, targets in _parts(rows, place, at, every):
        spread.add(targets, targets - _given(place.layer, rows, inputs).double())
    shift(place, spread.mean_missing().flatten())
    return LayerFit(spread.of(spread.missing), spread.of(spread.missing_after_shift()))


class Spread:
    """How much targets vary, and what is missing of them, in two halves of the samples."""

    def __init__(self, *outputs: int) -> None:
        self._sums = torch.zeros(2, 4, *outputs, dtype=torch.float64)
        self._rows = [0, 0]
        self._samples = 0

    def add(
        self,
        targets: Float64[Tensor, "samples *positions_outputs"],
        missing: Float64[Tensor, "samples *positions_outputs"],
    ) -> None:
        """Take some samples; the outputs are the last dimensions."""
        positions = tuple(range(targets.ndim - self._sums.ndim + 2))
        for half in (0, 1):
            own = slice((half - self._samples) % 2, None, 2)
            part = [(t, t.square()) for t in (targets[own], missing[own])]
            self._sums[half] += torch.stack([value.sum(positions) for pair in part for value in pair]).cpu()
            self._rows[half] += math.prod(targets[own].shape[: len(positions)])
        self._samples += len(targets)

    def of(self, error: float) -> float:
        """A squared error relative to the targets' variance."""
        sums, rows = self._sums.sum(0), max(sum(self._rows), 1)
        return relative(error, float((sums[1] - sums[0].square() / rows).sum()))

    @property
    def missing(self) -> float:
        """The squared error of the layer as it is."""
        return float(self._sums[:, 3].sum())

    def mean_missing(self) -> Float64[Tensor, "groups outputs"]:
        return self._sums[:, 2].sum(0) / max(sum(self._rows), 1)

    def missing_after_shift(self) -> float:
        """The squared error of each half, shifted by the mean of the other."""
        error = 0.0
        for half in (0, 1):
            by = self._sums[1 - half, 2] / max(self._rows[1 - half], 1)
            total, square = self._sums[half, 2], self._sums[half, 3]
            error += float((square - 2 * by * total + self._rows[half] * by.square()).sum())
        return error


def shift(place: Place, by: Float64[Tensor, " outputs"]) -> None:
    """Add to what the layer gives: in its bias, or if it has none in the mean of the norm that alone reads it."""
    layer = place.layer
    if layer.bias is not None:
        bias = layer.get_parameter("bias")
        bias.data = (bias.double() + by.to(bias.device)).to(bias)
        return
    weight = layer.get_parameter("weight")
    readers = [reader for reader in place.node.users if reader.op == "call_module"]
    following = place.network.get_submodule(str(readers[0].target)) if len(readers) == 1 else None
    if isinstance(following, NORMS):
        assert following.running_mean is not None
        following.running_mean = (following.running_mean.double() - by.to(weight.device)).to(following.running_mean)
        return
    layer.bias = nn.Parameter(by.to(weight), requires_grad=weight.requires_grad)


def _given(layer: nn.Module, rows: LayerRows, inputs: Tensor) -> Tensor:
    """What the layer gives for its rows as it is now."""
    given = torch.einsum("spgi,goi->spgo", inputs, rows.weight.to(inputs))
    if layer.bias is None:
        return given
    return given + layer.get_parameter("bias").detach().to(given).view(rows.groups, rows.outputs)


def _positions(rows: LayerRows, wanted: Float[Tensor, "samples ..."]) -> tuple[Positions, int]:
    """Which positions of which samples are looked at (every so many-th sample): one at random in each stretch."""
    samples, positions = len(wanted), rows.positions(wanted)
    most = WIDEST if rows.inputs > WIDEST else max(FEWEST_ROWS, ROWS_PER_INPUT * rows.inputs)
    every = max(1, math.ceil(samples / most)) if rows.inputs > WIDEST else 1
    samples = math.ceil(samples / every)
    looked_at = max(1, min(positions, most // samples if rows.inputs > WIDEST else math.ceil(most / samples)))
    places = torch.arange(looked_at).expand(samples, looked_at).double()
    if looked_at < positions:
        places = places + torch.rand(places.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (places * (positions / looked_at)).long().clamp_max(positions - 1).to(wanted.device), every


def _parts(rows: LayerRows, place: Place, at: Positions, every: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The samples looked at, some at a time: what is read at their positions, and what should be given."""
    of_a_sample = 8 * at.shape[1] * rows.groups * (rows.inputs + 2 * rows.outputs)
    at_once = max(1, RUN_BYTES // of_a_sample)
    for start in range(0, len(at), at_once):
        part = at[start : start + at_once]
        chosen = slice(start * every, (start + len(part)) * every, every)
        inputs = rows.read(place.reads[chosen], part)
        targets = rows.given(place.wanted[chosen], part, place.kept).double()
        yield inputs.to(torch.promote_types(inputs.dtype, torch.float32)), targets
