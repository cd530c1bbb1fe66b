"""A task's critical sub-network, cut loose inside the network that it came from.

The network is restructured to the neurons that the task needs, which refits them to do without the others, and the
smaller tensors are put back at their places. What a kept neuron would read from others becomes zero. The sub-network
then computes inside the network what it computes alone, whatever the other neurons do.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, fx, nn

from neusemslice.batches import Batches
from neusemslice.config import Reconstruction
from neusemslice.copying import copy_graph, copy_layer
from neusemslice.cutting import Cut
from neusemslice.errors import RestructureError
from neusemslice.increments.ownership import Entries, cut_of, own_entries
from neusemslice.masking import silence
from neusemslice.progress import Progress
from neusemslice.restructuring import PROBE_SAMPLES, restructure
from neusemslice.surgery import cut_layer
from neusemslice.tracing import SliceableModel


def isolate(
    network: fx.GraphModule,
    view: SliceableModel,
    kept: Mapping[str, Bool[Tensor, " _"]],
    owned: Mapping[str, Tensor],
    calibration: Batches,
    level: Reconstruction,
    progress: Progress,
) -> Entries:
    """Cut the kept neurons loose, in place, and say which entries are theirs.

    Args:
        network: holds the layers of `view` under their names.
        view: the network with the task's outputs alone.
        kept: the neurons that the task needs, those of earlier tasks included.
        owned: entries that belong to earlier tasks: they stay as they are.
        calibration: samples of the task, to refit on.
        level: how to refit.

    Raises:
        RestructureError: other neurons still change what the sub-network computes.
        DatasetError, StoppedError: as `restructure`.
    """
    cut = cut_of(view, kept)
    alone = restructure(
        view,
        {layer.name: cut.neurons(layer.name) for layer in view.sliceable_layers},
        reconstruct=level,
        calibration=calibration,
        on_progress=progress.on_progress,
        should_stop=progress.should_stop,
    ).model
    own = own_entries(view, kept)
    with torch.no_grad():
        for node in view.graph_module.graph.nodes:
            if node.op == "call_module":
                path = str(node.target)
                _put_back(
                    network.get_submodule(path), alone.get_submodule(path), _origins(view, cut, node), path, own, owned
                )
    _prove(network, cut)
    return own


def _origins(view: SliceableModel, cut: Cut, node: fx.Node) -> dict[str, Int64[Tensor, "..."]]:
    """For each tensor of a layer, where in the whole tensor the entries of the cut one come from."""
    layer = copy_layer(view.graph_module.get_submodule(str(node.target)))
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        numbers = torch.arange(tensor.numel(), dtype=torch.float64).view(tensor.shape)
        if isinstance(tensor, nn.Parameter):
            setattr(layer, name, nn.Parameter(numbers, requires_grad=False))
        else:
            setattr(layer, name, numbers)
    cut_down = cut_layer(layer, cut.read_by(node), cut.present(str(node.target)))
    named = (*cut_down.named_parameters(), *cut_down.named_buffers())
    return {name: tensor.detach().long() for name, tensor in named}


def _put_back(
    whole: nn.Module,
    small: nn.Module,
    origins: Mapping[str, Tensor],
    path: str,
    own: Entries,
    owned: Mapping[str, Tensor],
) -> None:
    """Give a layer's kept neurons the values of the smaller layer, and zeros from all others."""
    for name, value in (*small.named_parameters(), *small.named_buffers()):
        full = f"{path}.{name}"
        if name == "bias" and getattr(whole, name) is None:
            rows = own[f"{path}.weight"].flatten(1).any(1)
            whole.register_parameter(name, nn.Parameter(value.new_zeros(len(rows))))
            own[full], places = rows, rows.nonzero()[:, 0]
        elif full in own:
            places = origins[name].to(value.device)
        else:
            continue
        target: Tensor = getattr(whole, name)
        blank = own[full].to(target.device)
        filled = torch.where(blank, torch.zeros_like(target), target).flatten()
        filled[places.flatten()] = value.flatten()
        before = owned.get(full)
        filled = filled.view(target.shape)
        target.copy_(filled if before is None else torch.where(before.to(target.device), target, filled))


def _prove(network: fx.GraphModule, cut: Cut) -> None:
    """Silencing every other neuron changes no bit of what the task gives."""
    view = cut.model
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(PROBE_SAMPLES, *view.input_shape, generator=generator, dtype=torch.float64)
    probe = probe.to(view.device, view.dtype)
    inside = copy_graph(fx.GraphModule(network, view.graph_module.graph), "shared").eval()
    silenced = silence(cut, copy_graph(inside, "shared"))
    with torch.no_grad():
        difference = float((inside(probe) - silenced(probe)).abs().max())
    if difference != 0:
        raise RestructureError(
            f"The critical neurons are not cut loose: without the others the task's logits differ by {difference:.1e}.",
            hint="Use the method semantic for this network. Please report it: its layers are coupled unexpectedly.",
        )
