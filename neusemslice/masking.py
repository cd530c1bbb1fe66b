"""The network with some neurons silenced, of unchanged size."""

import copy
from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, fx, nn

from neusemslice.errors import SliceMismatchError
from neusemslice.tracing import SliceableLayer, SliceableModel

_MASK = "neuron_mask"


class NeuronMask(nn.Module):
    """Sets the neurons that are not kept to zero."""

    keep: Tensor

    def __init__(self, keep: Bool[Tensor, " neurons"]) -> None:
        super().__init__()
        self.register_buffer("keep", keep)

    def forward(self, value: Tensor) -> Tensor:
        """`value` is [batch, neurons * positions of a flatten, …]."""
        per_neuron = self.keep.repeat_interleave(value.shape[1] // len(self.keep))
        return value * per_neuron.view(1, -1, *[1] * (value.ndim - 2))


def mask_neurons(model: SliceableModel, keep: Mapping[str, Bool[Tensor, " _"]]) -> fx.GraphModule:
    """A copy of the network in which only the kept neurons speak, silenced at their read place.

    Raises:
        SliceMismatchError: `keep` names a layer or a number of neurons that the model does not have.
    """
    masked = copy.deepcopy(model.graph_module)
    nodes = {node.target: node for node in masked.graph.nodes if node.op == "call_module"}
    for number, (layer, mask) in enumerate(check_keep(model, keep)):
        name = f"{_MASK}_{number}"
        masked.add_submodule(name, NeuronMask(mask.to(model.device)))
        read = nodes[layer.read_node]
        with masked.graph.inserting_after(read):
            silenced = masked.graph.call_module(name, (read,))
        read.replace_all_uses_with(silenced, delete_user_cb=lambda user, new=silenced: user is not new)
    masked.recompile()
    return masked


def check_keep(
    model: SliceableModel, keep: Mapping[str, Bool[Tensor, " _"]]
) -> list[tuple[SliceableLayer, Bool[Tensor, " _"]]]:
    """The layers that `keep` names, with their masks.

    Raises:
        SliceMismatchError: a layer is unknown, a mask has another length than the layer has neurons, or keeps none.
    """
    layers = {layer.name: layer for layer in model.sliceable_layers}
    checked = []
    for name, mask in keep.items():
        if name not in layers or mask.dtype != torch.bool or mask.shape != (layers[name].neurons,):
            offered = f"{layers[name].neurons} neurons" if name in layers else f"no such layer among {list(layers)}"
            raise SliceMismatchError(
                f"The keep mask of {name!r} is {mask.dtype} of shape {tuple(mask.shape)}; the model has {offered}.",
                hint="Give a boolean for each neuron of a sliceable layer.",
            )
        if not bool(mask.any()):
            raise SliceMismatchError(f"The keep mask of {name!r} keeps no neuron.", hint="Keep at least one.")
        checked.append((layers[name], mask))
    return checked
