"""Functions and methods in a traced graph, with what is known about their arguments."""

from typing import Any

from torch import Tensor, fx, nn

from neusemslice.errors import UnsupportedModelError
from neusemslice.observing import Observations, Shape

HINT = (
    "Use convolutions, linear layers, norms, elementwise activations, pooling, flatten, dropout, sums, products, "
    "concatenations and self-attention."
)


class Call:
    """A function or method in a traced graph."""

    def __init__(self, node: fx.Node, place: str, network: nn.Module, observed: Observations) -> None:
        self.node, self.place, self._network, self._observed = node, place, network, observed

    def bind(self, names: str) -> dict[str, Any]:
        """The arguments by name; what does not depend on the input is filled in, with BATCH for the batch size."""
        values = dict(zip(names.split(), self.node.args, strict=False)) | self.node.kwargs
        return dict(fx.node.map_arg(values, self._constant))

    def rest(self) -> tuple[Any, ...]:
        """The arguments after the first, a tuple of them as if it were spread."""
        values = self.node.args[1:]
        spread = values[0] if len(values) == 1 and isinstance(values[0], tuple | list) else values
        return tuple(fx.node.map_arg(list(spread), self._constant))

    def shape(self, node: fx.Node | None = None) -> Shape:
        """Shape of a tensor, by default of the result."""
        return self._observed.shapes[(node or self.node).name]

    def sizes(self, node: fx.Node, dim: int) -> list[int]:
        """Sizes of the tensors in a list along one dimension, not the first."""
        return [shape[dim] for shape in self._observed.constants[node.name]]

    def learned(self, value: Any) -> Tensor | None:
        """The network's own tensor that a value is, or is an expansion of."""
        while isinstance(value, fx.Node) and value.target == "expand":
            value = value.args[0]
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        found: Any = self._network
        for name in str(value.target).split("."):
            found = getattr(found, name)
        return found.detach() if isinstance(found, Tensor) else None

    def is_value(self, value: Any) -> bool:
        """Whether it is a tensor that depends on the input."""
        return isinstance(value, fx.Node) and value.name not in self._observed.batchless and self.learned(value) is None

    def require_value(self, value: Any) -> fx.Node:
        """The one tensor that a function works on."""
        if not self.is_value(value):
            raise self.refused("works on something else than samples")
        assert isinstance(value, fx.Node)
        return value

    def refused(self, reason: str, hint: str = HINT) -> UnsupportedModelError:
        """The error for a call that no layer can stand for."""
        return UnsupportedModelError(f"{describe(self.node)} at {self.place!r} {reason}.", node=self.place, hint=hint)

    def _constant(self, node: fx.Node) -> Any:
        return self._observed.constants.get(node.name, node)


def describe(node: fx.Node) -> str:
    """The node's operation in the words of the network's author."""
    return node.name.rstrip("_0123456789") if node.op == "call_function" else str(node.target).rstrip("_")
