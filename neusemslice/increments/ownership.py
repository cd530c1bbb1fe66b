"""Which entries of a network's tensors belong to neurons that have to stay as they are."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from neusemslice.cutting import Cut, cut_neurons
from neusemslice.model_slice import ModelSlice
from neusemslice.neuron_parameters import neuron_parameters
from neusemslice.roles import NORMS
from neusemslice.tracing import SliceableModel

Entries = dict[str, Bool[Tensor, "..."]]
"""For tensors of a network by name, True for some of their entries."""


def critical_neurons(slice_: ModelSlice) -> dict[str, Bool[Tensor, " _"]]:
    """For each layer, True for the neurons that any category needs; in a deeparc slice none of a redundant layer's."""
    return {layer: keep.any(0).cpu() for layer, keep in slice_.keep_masks.items()}


def cut_of(model: SliceableModel, kept: Mapping[str, Bool[Tensor, " _"]]) -> Cut:
    """The cut that leaves these neurons, of a layer with none the first: a cut leaves one of each at least."""
    asked = {}
    for layer, mask in kept.items():
        asked[layer] = mask if bool(mask.any()) else torch.arange(len(mask)) == 0
    return cut_neurons(model, asked)


def own_entries(model: SliceableModel, kept: Mapping[str, Bool[Tensor, " _"]]) -> Entries:
    """For all parameters and norm statistics, True for the entries of the kept neurons and of what is no neuron's.

    A layer that keeps no neuron owns nothing.
    """
    cut = cut_of(model, kept)
    own: Entries = dict(neuron_parameters(cut))
    network = model.graph_module
    for node in network.graph.nodes:
        layer = network.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(layer, NORMS):
            present = cut.present(str(node.target)).flatten()
            for name in ("running_mean", "running_var"):
                statistic = layer.get_buffer(name)
                own[f"{node.target}.{name}"] = present.expand(statistic.shape).clone().to(statistic.device)
    for layer_name, mask in kept.items():
        if not bool(mask.any()):
            for path in model.layer(layer_name).branch:
                for name in [name for name in own if name.rpartition(".")[0] == path]:
                    own[name] = torch.zeros_like(own[name])
    return own


def merged(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Entries:
    """True where either is; what only one names is as it says."""
    both = {name: one[name] | other[name] for name in one.keys() & other.keys()}
    return {**one, **other, **both}


def free_parameters(network: nn.Module, own: Mapping[str, Tensor]) -> Entries:
    """Of the network's parameters, the entries that belong to nobody yet, by the names of those that have any."""
    free = {}
    for name, parameter in network.named_parameters():
        mask = ~own[name] if name in own else torch.ones_like(parameter, dtype=torch.bool)
        if bool(mask.any()):
            free[name] = mask
    return free
