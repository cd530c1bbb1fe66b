"""Which entries of which parameters are a neuron's own."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from neusemslice.cutting import Cut
from neusemslice.roles import LEARNED


def neuron_parameters(cut: Cut) -> dict[str, Bool[Tensor, "..."]]:
    """For each parameter of the cut's model, True for the entries that belong to neurons the cut keeps.

    A neuron's own are the weights it reads its inputs with, its bias, and its entries in the layers that work on each
    neuron by itself: norms, slopes, depthwise convolutions, learned shifts and scales. What belongs to no sliceable
    layer's neuron, such as the last layer, counts as kept.
    """
    network = cut.model.graph_module
    masks = {}
    for node in network.graph.nodes:
        if node.op == "call_module":
            layer = network.get_submodule(node.target)
            present = cut.present(node.target)
            for name, parameter in layer.named_parameters():
                masks[f"{node.target}.{name}"] = _spread(layer, parameter, present).to(parameter.device)
    return masks


def parameter_share(masks: Mapping[str, Bool[Tensor, "..."]]) -> float:
    """The share of all entries that are True: of trainable masks, the paper's training parameter ratio (TPR)."""
    entries = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.sum()) for mask in masks.values()) / entries


def _spread(layer: nn.Module, parameter: Tensor, present: Bool[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """A parameter's mask, from what is left of the layer's output; an entry of several neurons is any one's."""
    if bool(present.all()):
        return torch.ones_like(parameter, dtype=torch.bool)
    if isinstance(layer, LEARNED):
        for dim in range(-present.ndim, 0):
            if parameter.shape[dim] == 1:
                present = present.any(dim, keepdim=True)
        return present.expand(parameter.shape).clone()
    if len(parameter) == 1:
        return present.any().expand(parameter.shape).clone()
    rows = present.flatten().view(-1, *[1] * (parameter.ndim - 1))
    return rows.expand(parameter.shape).clone()
