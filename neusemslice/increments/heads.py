"""The network's outputs, task by task: each task has a linear layer of its own, and the outputs are their values side
by side.

A layer of its own for each task means that the products which make a task's logits have the same shapes before and
after the network grows: the logits then stay the same to the last bit, not only up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor, fx, nn

from neusemslice.copying import copy_graph, unbound
from neusemslice.errors import UnsupportedModelError
from neusemslice.graph_layers import Concat
from neusemslice.tracing import SliceableModel, trace

_JOIN = "heads"


@dataclass(frozen=True)
class Task:
    """Categories that were learned together: outputs `first` to `first + categories - 1` of the network.

    Attributes:
        heads: the linear layers that compute them, in order.
    """

    first: int
    categories: int
    heads: tuple[str, ...]

    @property
    def labels(self) -> range:
        """Of its categories."""
        return range(self.first, self.first + self.categories)

    def of(self, values: Shaped[Tensor, "batch categories"]) -> Shaped[Tensor, "batch own"]:
        """Its own of one value for each category."""
        return values[:, self.first : self.first + self.categories]


def whole_task(model: SliceableModel) -> Task:
    """All of a network's outputs as one task.

    Raises:
        UnsupportedModelError: the outputs are not those of linear layers that read one value [batch, features].
    """
    _, layers = _heads(model.graph_module, model.logits_node)
    return Task(0, model.categories, tuple(str(node.target) for node in layers))


def grow_head(network: fx.GraphModule, logits_node: str, categories: int, seed: int) -> str:
    """Give a canonical network outputs for another task, in place; they are the last ones.

    Args:
        logits_node: path of the layer that computes the logits.
        seed: draws the first weights.

    Returns:
        The path of the new linear layer.
    """
    logits, layers = _heads(network, logits_node)
    last = network.get_submodule(str(layers[-1].target))
    assert isinstance(last, nn.Linear)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        grown = nn.Linear(last.in_features, categories)
    path = _free_name(network, f"head_{len(layers)}")
    network.add_submodule(path, grown.to(last.weight.device, last.weight.dtype))
    with network.graph.inserting_before(_after(layers[-1])):
        node = network.graph.call_module(path, (layers[-1].args[0],))
    if logits in layers:
        join = _free_name(network, _JOIN)
        network.add_submodule(join, Concat(1))
        with network.graph.inserting_after(node):
            joined = network.graph.call_module(join, (logits, node))
        logits.replace_all_uses_with(joined, delete_user_cb=lambda user: user is not joined)
    else:
        logits.args = (*layers, node)
    network.recompile()
    unbound(network)
    return path


def task_view(model: SliceableModel, task: Task) -> SliceableModel:
    """The network with the outputs of one task alone, numbered from 0; its layers have the names that they have."""
    network = copy_graph(model.graph_module, "shared")
    nodes = {node.target: node for node in network.graph.nodes if node.op == "call_module"}
    value = nodes[task.heads[0]]
    if len(task.heads) > 1:
        join = _free_name(network, "task")
        network.add_submodule(join, Concat(1))
        with network.graph.inserting_after(nodes[task.heads[-1]]):
            value = network.graph.call_module(join, tuple(nodes[path] for path in task.heads))
    network.graph.output_node().args = (value,)
    for node in reversed(network.graph.nodes):
        if node.op == "call_module" and not node.users:
            network.graph.erase_node(node)
            network.delete_submodule(str(node.target))
    network.recompile()
    unbound(network)
    return traced(network, model)


def traced(network: fx.GraphModule, like: SliceableModel) -> SliceableModel:
    """The network's sliceable form, where it takes the inputs that `like` takes."""
    return trace(network, torch.zeros(1, *like.input_shape, device=like.device, dtype=like.dtype))


def _heads(network: fx.GraphModule, logits_node: str) -> tuple[fx.Node, list[fx.Node]]:
    """The node that gives the logits, and those of the linear layers that they come from."""
    (logits,) = network.graph.find_nodes(op="call_module", target=logits_node)
    joined = isinstance(network.get_submodule(logits_node), Concat)
    layers = list(logits.args) if joined else [logits]
    linear = all(
        node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), nn.Linear) for node in layers
    )
    if not linear or len({node.args[0] for node in layers}) != 1:
        kind = type(network.get_submodule(logits_node)).__name__
        raise UnsupportedModelError(
            f"The outputs come from {logits_node!r} ({kind}), not from a linear layer: they cannot grow.",
            node=logits_node,
            hint="End the network in a linear layer, with or without a softmax after it.",
        )
    return logits, layers


def _after(node: fx.Node) -> fx.Node:
    following: fx.Node = node.next
    return following


def _free_name(network: nn.Module, wanted: str) -> str:
    taken: Sequence[str] = [path.split(".")[0] for path, _ in network.named_modules()]
    name, number = wanted, 1
    while name in taken or hasattr(network, name):
        number += 1
        name = f"{wanted}_{number}"
    return name
