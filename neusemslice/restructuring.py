"""Physical removal of the neurons that are not critical, with a proof for each result."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Bool
from torch import Tensor, fx

from neusemslice.checkpoint import save_checkpoint
from neusemslice.config import Branches, Reconstruction
from neusemslice.config_values import require_choice
from neusemslice.copying import copy_graph, unbound
from neusemslice.cutting import Cut, cut_neurons
from neusemslice.deeparc import Seam, remove_redundant
from neusemslice.errors import ConfigError, RestructureError, SliceMismatchError
from neusemslice.graph_layers import Scatter
from neusemslice.masking import silence
from neusemslice.model_slice import ModelSlice
from neusemslice.profiling import count_flops, count_parameters
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.reconstruction import ReconstructionReport
from neusemslice.reconstruction import reconstruct as adjust
from neusemslice.surgery import cut_layer
from neusemslice.tracing import SliceableModel

PROBE_SAMPLES = 8
TOLERANCE = 1e-4
"""Largest difference allowed between masked and restructured logits, relative to the largest logit (float32)."""


@dataclass(frozen=True)
class LayerCount:
    """How many of a layer's neurons are left."""

    kept: int
    neurons: int


@dataclass(frozen=True)
class RestructureReport:
    """What the removal changed.

    Attributes:
        compression_rate: share of the parameters removed.
        flops_before, flops_after: of one forward pass on one sample.
        max_relative_difference: between the logits of the masked and the restructured network on the probe batch; None
            after deeparc, whose sewing layers imitate what they replace.
        seams: what deeparc took out, and how well the rest was sewn together.
        reconstruction: what was adjusted after the removal; None if nothing was asked for.
    """

    parameters_before: int
    parameters_after: int
    compression_rate: float
    flops_before: int
    flops_after: int
    layers: dict[str, LayerCount]
    max_relative_difference: float | None = None
    seams: tuple[Seam, ...] = ()
    reconstruction: ReconstructionReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Restructured:
    """The smaller network, in eval mode and trainable, and what was done."""

    model: fx.GraphModule
    input_shape: tuple[int, ...]
    report: RestructureReport

    def save(self, path: str | Path) -> None:
        """Write a checkpoint that `load_checkpoint` reads without the original class."""
        save_checkpoint(self.model, self.input_shape, path, {"restructure": self.report.to_dict()})


def restructure(
    model: SliceableModel,
    slice_: ModelSlice | Mapping[str, Bool[Tensor, " _"]],
    *,
    branches: Branches = "union",
    reconstruct: Reconstruction = "none",
    calibration: Iterable[Any] | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> Restructured:
    """Keep only the critical neurons, physically: smaller tensors, no zeros (formula 7).

    The result has proven itself: on a probe batch its logits are those of the masked network. A deeparc slice takes
    whole layers out instead and sews the rest together (`neusemslice.deeparc`), which only imitates them.

    After the proof, what the removal took is given back as far as the layers that are left can: `reconstruct` says by
    which means. In forward order each layer that lost inputs, or reads values that changed, is adjusted so that on the
    calibration samples it gives what it gave in the original network, from what it reads now.

    Args:
        slice_: a slice of this model, or a keep mask for each layer (layers that are not named stay whole).
        branches: what happens where branches are added up, see `neusemslice.config.Branches`.
        reconstruct: by which means, see `neusemslice.config.Reconstruction`; not for a deeparc slice.
        calibration: re-iterable batches of unlabelled samples, or of pairs whose labels are not looked at; to
            reconstruct from (some hundreds of samples), and for the sewing layers of a deeparc slice.

    Raises:
        SliceMismatchError: the slice belongs to another model.
        RestructureError: the smaller network does not compute what the masked one computes.
        ConfigError: there is no calibration data, and a deeparc slice or `reconstruct` needs it; or `reconstruct` is
            unknown, or asked for with a deeparc slice.
        DatasetError: the calibration data does not fit the model, has fewer than four samples, or is not finite.
        StoppedError: should_stop() returned true.
    """
    progress = Progress(on_progress, should_stop)
    progress.report("restructure", 0, 2)
    _check_level(reconstruct, slice_, calibration)
    if isinstance(slice_, ModelSlice):
        if slice_.model_fingerprint != model.fingerprint:
            raise SliceMismatchError(
                "The slice was made from another model: the fingerprints differ.", hint="Slice this model."
            )
        if slice_.config.strategy == "deeparc":
            sewn = remove_redundant(model, slice_, calibration, should_stop=should_stop)
            progress.report("restructure", 2, 2)
            gone = {layer for seam in sewn.seams for layer in seam.layers}
            left = {layer.name: 0 if layer.name in gone else layer.neurons for layer in model.sliceable_layers}
            report = replace(_report(model, sewn.model, left), seams=sewn.seams)
            return Restructured(sewn.model, model.input_shape, report)
        keep: Mapping[str, Tensor] = slice_.merged()
    else:
        keep = slice_
    cut = cut_neurons(model, keep, branches)
    smaller = _remove(cut, copy_graph(model.graph_module, "shared"))
    progress.report("restructure", 1, 2)
    difference = _prove(model, silence(cut, copy_graph(model.graph_module, "shared")), smaller)
    progress.report("restructure", 2, 2)
    report = _report(
        model, smaller, {layer.name: int(cut.neurons(layer.name).sum()) for layer in model.sliceable_layers}
    )
    report = replace(report, max_relative_difference=difference)
    if reconstruct != "none" and calibration is not None:
        done = adjust(cut, smaller, calibration, reconstruct, progress=progress)
        report = replace(
            report,
            reconstruction=done,
            parameters_after=(after := count_parameters(smaller)),
            compression_rate=1 - after / report.parameters_before,
        )
    return Restructured(smaller.requires_grad_(requires_grad=True), model.input_shape, report)


def _check_level(level: str, slice_: object, calibration: Iterable[Any] | None) -> None:
    require_choice("reconstruct", level, get_args(Reconstruction))
    if level == "none":
        return
    if isinstance(slice_, ModelSlice) and slice_.config.strategy == "deeparc":
        raise ConfigError(
            f"reconstruct={level!r} refits layers that lost neurons, and deeparc drops whole layers.",
            field="reconstruct",
            hint="Leave reconstruct out: deeparc's sewing layers are fitted to the calibration samples anyway.",
        )
    if calibration is None:
        raise ConfigError(
            f"reconstruct={level!r} needs samples to adjust the layers to, and there are none.",
            field="calibration",
            hint="Pass calibration: some hundreds of unlabelled samples.",
        )


def _report(model: SliceableModel, smaller: fx.GraphModule, left: Mapping[str, int]) -> RestructureReport:
    before, after = count_parameters(model.graph_module), count_parameters(smaller)
    return RestructureReport(
        parameters_before=before,
        parameters_after=after,
        compression_rate=1 - after / before,
        flops_before=count_flops(model.graph_module, model.input_shape),
        flops_after=count_flops(smaller, model.input_shape),
        layers={layer.name: LayerCount(left[layer.name], layer.neurons) for layer in model.sliceable_layers},
    )


def parameters_after(
    model: SliceableModel, keep: Mapping[str, Bool[Tensor, " _"]], branches: Branches = "union"
) -> int:
    """Parameters of the network restructured to these keep masks, without its proof.

    Raises:
        SliceMismatchError: `keep` names a layer or a number of neurons that the model does not have.
    """
    return count_parameters(shapes_after(model, keep, branches))


def shapes_after(
    model: SliceableModel, keep: Mapping[str, Bool[Tensor, " _"]], branches: Branches = "union"
) -> fx.GraphModule:
    """The network restructured to these keep masks, with tensors that have a shape but no values.

    Raises:
        SliceMismatchError: `keep` names a layer or a number of neurons that the model does not have.
    """
    return _remove(cut_neurons(model, keep, branches), copy_graph(model.graph_module, "meta"))


def _remove(cut: Cut, smaller: fx.GraphModule) -> fx.GraphModule:
    """`smaller`, a copy of the cut's model, with each layer cut to what is left of what it reads and computes."""
    for node in smaller.graph.nodes:
        if node.op == "call_module":
            layer = smaller.get_submodule(node.target)
            smaller.set_submodule(node.target, cut_layer(layer, cut.read_by(node), cut.present(node.target)))
    for name in cut.scattered:
        _scatter(smaller, cut, cut.model.layer(name).branch[-1])
    smaller.recompile()
    return unbound(smaller)


def _scatter(smaller: fx.GraphModule, cut: Cut, end: str) -> None:
    """Put what is left of a branch at its places among the others."""
    own, joined = cut.present(end), cut.joined(end)
    axis = next(dim for dim, size in enumerate(joined.shape) if size > 1)
    places = own.flatten()[joined.flatten()].nonzero()[:, 0].tolist()
    container, dot, name = end.rpartition(".")
    taken = dict(smaller.named_modules())
    number = next(number for number in count(1) if f"{container}{dot}scatter_{name}_{number}" not in taken)
    path = f"{container}{dot}scatter_{name}_{number}"
    smaller.add_submodule(path, Scatter(places, int(joined.sum()), axis + 1))
    (value,) = smaller.graph.find_nodes(op="call_module", target=end)
    with smaller.graph.inserting_after(value):
        scattered = smaller.graph.call_module(path, (value,))
    value.replace_all_uses_with(scattered, delete_user_cb=lambda user: user is not scattered)


def _prove(model: SliceableModel, masked: fx.GraphModule, smaller: fx.GraphModule) -> float:
    """The largest relative difference between masked and smaller network; RestructureError if it is too large.

    Computed on the CPU and in float32 at least: a GPU's reduced-precision products (TF32) and half precision differ by
    more than the tolerance on their own.
    """
    dtype = torch.promote_types(model.dtype, torch.float32)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(PROBE_SAMPLES, *model.input_shape, generator=generator, dtype=torch.float64).to(dtype)
    with torch.no_grad():
        expected, computed = (_on_cpu(network, dtype)(probe) for network in (masked, smaller))
    difference = float((expected - computed).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not difference <= TOLERANCE:
        raise RestructureError(
            f"The smaller network differs from the masked one by {difference:.1e} of the largest logit.",
            hint=f"At most {TOLERANCE:g} is allowed. Please report the network: its layers are coupled unexpectedly.",
        )
    return difference


def _on_cpu(network: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    parameters = list(network.parameters())
    if all(parameter.device.type == "cpu" and parameter.dtype == dtype for parameter in parameters):
        return network
    return copy_graph(network).to("cpu", dtype)
