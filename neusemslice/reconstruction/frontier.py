"""The values of the original and of the smaller network, layer by layer, as long as a layer still reads them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from neusemslice.cutting import Cut
from neusemslice.roles import is_producer

RUN_BYTES = 64 * 1024**2
"""Of a layer's output that are computed at once."""


@dataclass(frozen=True, eq=False)
class Value:
    """A value in both networks.

    Attributes:
        original: in the whole network.
        smaller: in the smaller one; the same tensor where nothing is gone and nothing has changed.
        right: what is left of it is what it was.
    """

    original: Tensor
    smaller: Tensor
    right: bool

    @property
    def same(self) -> bool:
        """Nothing is gone and nothing has changed."""
        return self.original is self.smaller


class Frontier:
    """Runs both networks side by side; values are freed with their last reader."""

    def __init__(self, cut: Cut, smaller: fx.GraphModule, inputs: Tensor) -> None:
        self._cut, self._smaller = cut, smaller
        self._own = {name for name, _ in cut.model.graph_module.named_modules()}
        self._values: dict[fx.Node, Value] = {}
        self._left: Counter[fx.Node] = Counter({node: len(node.users) for node in smaller.graph.nodes})
        (start,) = smaller.graph.find_nodes(op="placeholder")
        self._values[start] = Value(inputs, inputs, right=True)
        self.bytes = self.most_bytes = self._size(self._values[start])

    def read_by(self, node: fx.Node) -> list[Value]:
        """What a layer reads."""
        return [self._values[source] for source in node.all_input_nodes]

    def original(self, node: fx.Node) -> Tensor:
        """What the layer gives in the original network."""
        sources = [self._values[source].original for source in node.args]  # type: ignore[index]
        if self._is_new(node):
            return sources[0]
        return run(self._cut.model.graph_module.get_submodule(str(node.target)), sources)

    def pass_on(self, node: fx.Node, original: Tensor) -> None:
        """Run the smaller network's layer as it is now, keep both values, and free what nothing reads any more."""
        reads = self.read_by(node)
        layer = self._smaller.get_submodule(str(node.target))
        if all(value.same for value in reads) and bool(self._cut.present(str(node.target)).all()):
            value = Value(original, original, right=True)
        else:
            right = all(value.same if is_producer(layer) else value.right for value in reads)
            sources = [self._values[source].smaller for source in node.args]  # type: ignore[index]
            value = Value(original, run(layer, sources), right and not self._is_new(node))
        self._values[node] = value
        self.bytes += self._size(value)
        self.most_bytes = max(self.most_bytes, self.bytes)
        for source in node.all_input_nodes:
            self._left[source] -= 1
            if not self._left[source]:
                self.bytes -= self._size(self._values.pop(source))

    def _is_new(self, node: fx.Node) -> bool:
        """Whether the removal put it in: a scatter among the branches that lost neurons of their own."""
        return node.op == "call_module" and str(node.target) not in self._own

    @staticmethod
    def _size(value: Value) -> int:
        tensors = (value.original,) if value.same else (value.original, value.smaller)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def run(layer: nn.Module, sources: Sequence[Tensor]) -> Tensor:
    """The layer's output for all samples, computed for some of them at a time."""
    first: Tensor = layer(*(source[:1] for source in sources))
    output = first.new_empty(len(sources[0]), *first.shape[1:])
    at_once = max(1, RUN_BYTES // (first.numel() * first.element_size()))
    for start in range(0, len(output), at_once):
        stop = start + at_once
        output[start:stop] = layer(*(source[start:stop] for source in sources))
    return output


def bytes_of_a_sample(cut: Cut, smaller: fx.GraphModule) -> int:
    """The most that the values of one sample take at once, in both networks."""
    frontier = Frontier(
        cut, smaller, torch.zeros(1, *cut.model.input_shape, device=cut.model.device, dtype=cut.model.dtype)
    )
    for node in layers_of(smaller):
        frontier.pass_on(node, frontier.original(node))
    return frontier.most_bytes


def layers_of(network: fx.GraphModule) -> list[fx.Node]:
    """The graph's layers in forward order."""
    return [node for node in network.graph.nodes if node.op == "call_module"]
