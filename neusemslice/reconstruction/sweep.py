"""Reconstruction after a cut: one sweep through both networks, in forward order.

Each layer is adjusted to what the layers before it really give by then, so that errors do not pile up.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx, nn

from neusemslice.config import Reconstruction
from neusemslice.cutting import Cut
from neusemslice.errors import DatasetError
from neusemslice.progress import Progress
from neusemslice.reconstruction.adjusting import Place, refit, shift_to_mean
from neusemslice.reconstruction.calibration import gather
from neusemslice.reconstruction.frontier import Frontier, Value, bytes_of_a_sample, layers_of
from neusemslice.reconstruction.norm_statistics import measure_again
from neusemslice.reconstruction.report import LayerFit, ReconstructionReport
from neusemslice.roles import CONVOLUTIONS, NORMS, is_depthwise, is_producer

MEMORY_BUDGET_BYTES = 2 * 1024**3
"""Of all values that are held at once. Fewer calibration samples are used if those of all would take more."""


@torch.no_grad()
def reconstruct(
    cut: Cut,
    smaller: fx.GraphModule,
    batches: Iterable[Any],
    level: Reconstruction,
    *,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    progress: Progress,
) -> ReconstructionReport:
    """Bring `smaller`, in place, back to what the cut's model computes.

    Raises:
        DatasetError: the calibration data has fewer than four samples, does not fit the model, or leads to values that
            are not finite.
        StoppedError: the caller asked to stop.
    """
    layers = layers_of(smaller)
    progress.report("reconstruct", 0, len(layers))
    calibration = gather(cut.model, batches, memory_budget_bytes // bytes_of_a_sample(cut, smaller))
    frontier = Frontier(cut, smaller, calibration.inputs)
    fits: dict[str, LayerFit] = {}
    for number, node in enumerate(layers, start=1):
        path, original = str(node.target), frontier.original(node)
        adjust = _adjustment(level, smaller.get_submodule(path), frontier.read_by(node))
        if adjust is not None:
            fits[path] = adjust(_place(cut, smaller, node, frontier, original))
            if not math.isfinite(fits[path].after):
                raise DatasetError(
                    f"The values of {path!r} on the calibration data are NaN or infinite.",
                    hint="Check the values and normalisation of the inputs, and the network's weights.",
                )
        frontier.pass_on(node, original)
        progress.report("reconstruct", number, len(layers))
    return ReconstructionReport(level, len(calibration.inputs), calibration.given, fits)


def _adjustment(level: Reconstruction, layer: nn.Module, reads: list[Value]) -> Callable[[Place], LayerFit] | None:
    """What is to be done about a layer; nothing if it reads what it read in the original network."""
    if all(value.same if is_producer(layer) else value.right for value in reads):
        return None
    if level == "norms":
        return measure_again if isinstance(layer, NORMS) else None
    if is_producer(layer) or is_depthwise(layer):
        return refit if level == "least_squares" else shift_to_mean
    return None


def _place(cut: Cut, smaller: fx.GraphModule, node: fx.Node, frontier: Frontier, original: torch.Tensor) -> Place:
    layer, present = smaller.get_submodule(str(node.target)), cut.present(str(node.target))
    axis = -1 if is_producer(layer) and not isinstance(layer, CONVOLUTIONS) else 1
    features = original.shape[axis]
    kept = torch.arange(features) if bool(present.all()) else present.flatten().nonzero()[:, 0]
    return Place(node, smaller, frontier.read_by(node)[0].smaller, original, kept.to(original.device))
