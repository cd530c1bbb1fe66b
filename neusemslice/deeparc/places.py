"""The places of a network that DeepArc compares: values that every path from the input to the output runs through.

In a sequence they are the layers' outputs after norm and activation; in a residual network the blocks' outputs. What
lies between two adjacent places can be taken out, since nothing else reads it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from neusemslice.graph_layers import Add, Permute
from neusemslice.roles import ACTIVATIONS, CARRIERS, CONVOLUTIONS, NORMS, POOLS
from neusemslice.tracing import SliceableModel

_CHANNELS_FIRST: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, *NORMS, *POOLS, nn.GroupNorm)
_FEATURES_LAST: tuple[type[nn.Module], ...] = (nn.Linear, nn.LayerNorm)
_UNCHANGED: tuple[type[nn.Module], ...] = (Add, *ACTIVATIONS, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
"""What a residual stream passes through: a block that adds nothing leaves it, up to an activation, as it was."""


@dataclass(frozen=True)
class Place:
    """A place, with what lies between the place before it (or the input) and itself.

    Attributes:
        path: of the layer whose output it is.
        layers: names of the sliceable layers on the way, one at least.
        nodes: paths of all layers on the way, in forward order; the last is `path`.
    """

    path: str
    layers: tuple[str, ...]
    nodes: tuple[str, ...]


def find_places(model: SliceableModel) -> tuple[Place, ...]:
    """All places of a model, in forward order; the logits are none."""
    sliceable = {layer.name for layer in model.sliceable_layers}
    places: list[Place] = []
    layers: list[str] = []
    nodes: list[str] = []
    extending = False
    for node, is_single in _with_singles(model.graph_module.graph):
        if node.target == model.logits_node:
            break
        path = str(node.target)
        layer = model.graph_module.get_submodule(path)
        nodes.append(path)
        if path in sliceable:
            layers.append(path)
        if is_single and layers:
            places.append(Place(path, tuple(layers), tuple(nodes)))
            layers, nodes, extending = [], [], True
        elif not is_single or not isinstance(layer, (*NORMS, *ACTIVATIONS, *CARRIERS)):
            extending = False
        elif extending and not isinstance(layer, CARRIERS):
            last = places.pop()
            places.append(Place(path, last.layers, (*last.nodes, *nodes)))
            nodes = []
    return tuple(places)


class NodeReader(fx.Interpreter):
    """Runs a canonical graph and keeps the values of some layers."""

    def __init__(self, network: fx.GraphModule, paths: Iterable[str]) -> None:
        super().__init__(network)
        self.extra_traceback = False
        self._paths = frozenset(paths)
        self._values: dict[str, Tensor] = {}

    def read(self, inputs: Float[Tensor, "batch ..."]) -> dict[str, Tensor]:
        """The values by path, in forward order."""
        self._values = {}
        with torch.no_grad():
            self.run(inputs)
        return self._values

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.target in self._paths:
            self._values[n.target] = value
        return value


def neuron_axis(network: fx.GraphModule, node: fx.Node) -> int:
    """The dimension of a node's value along which its neurons are: 1, or -1 behind layers that work on the last."""
    if node.op != "call_module":
        return 1
    layer = network.get_submodule(str(node.target))
    if isinstance(layer, _CHANNELS_FIRST):
        return 1
    if isinstance(layer, _FEATURES_LAST):
        return -1
    axis = neuron_axis(network, node.all_input_nodes[0])
    return layer.dims.index(axis % len(layer.dims)) if isinstance(layer, Permute) else axis


def leaves_unchanged(network: fx.GraphModule, first: str, last: str) -> bool:
    """Whether a residual stream leads from one place to a later one: sums and activations, no other layer."""
    reached = {first}
    for node in network.graph.nodes:
        from_stream = any(source.target in reached for source in node.all_input_nodes)
        if from_stream and node.op == "call_module" and isinstance(network.get_submodule(node.target), _UNCHANGED):
            reached.add(node.target)
    return last in reached


def _with_singles(graph: fx.Graph) -> Iterator[tuple[fx.Node, bool]]:
    """Each layer's node, and whether no path goes past it: nothing that stands before it is read after it."""
    number = {node: place for place, node in enumerate(graph.nodes)}
    last_read = 0
    for node in graph.nodes:
        if node.op == "call_module":
            yield node, last_read <= number[node]
        last_read = max(last_read, *(number[user] for user in node.users), 0)
