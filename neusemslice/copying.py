"""Copies of graphs that cost no more memory than they need."""

import copy
from typing import Literal, TypeVar

from torch import Tensor, fx, nn

Layer = TypeVar("Layer", bound=nn.Module)
Tensors = Literal["own", "shared", "meta"]
"""Whether a copy has tensors of its own, the original's, or only their shapes."""


def copy_graph(network: fx.GraphModule, tensors: Tensors = "own") -> fx.GraphModule:
    """A copy whose graph and layers are its own.

    It is freed with the last reference to it: the way back from a graph to its module, which would keep both until the
    next garbage collection, is cut. Loops over many restructured networks would otherwise pile them up.
    """
    memo: dict[int, Tensor] = {}
    if tensors != "own":
        for tensor in (*network.parameters(), *network.buffers()):
            memo[id(tensor)] = tensor if tensors == "shared" else _shape_of(tensor)
    return unbound(copy.deepcopy(network, memo))


def copy_layer(layer: Layer) -> Layer:
    """A copy that shares the tensors."""
    return copy.deepcopy(layer, {id(tensor): tensor for tensor in (*layer.parameters(), *layer.buffers())})


def unbound(network: fx.GraphModule) -> fx.GraphModule:
    """The network itself, without the way back from its graph to it."""
    network.graph.owning_module = None
    return network


def _shape_of(tensor: Tensor) -> Tensor:
    shape = tensor.detach().to("meta")
    return nn.Parameter(shape, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape
