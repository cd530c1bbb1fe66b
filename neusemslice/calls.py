"""Functions and methods in a traced graph, with what is known about their arguments."""

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from neusemslice.errors import UnsupportedModelError
from neusemslice.observing import BatchSize, Observations, Own, Shape, Type

HINT = (
    "Use convolutions, linear layers, norms, elementwise activations, pooling, flatten, dropout, sums, products, "
    "concatenations and self-attention."
)


@dataclass(frozen=True)
class Lifted:
    """The layers that compute what a call computes.

    Attributes:
        layer: the one that takes `inputs`.
        inputs: the values it takes.
        then: layers that follow, each on what the one before it gives.
        path: where the caller keeps the tensors of the one layer that has any.
    """

    layer: nn.Module
    inputs: tuple[fx.Node, ...]
    then: tuple[nn.Module, ...] = ()
    path: str | None = None


class Call:
    """A function or method in a traced graph."""

    def __init__(self, node: fx.Node, place: str, network: nn.Module, observed: Observations) -> None:
        self.node, self.place, self._network, self._observed = node, place, network, observed

    def bind(self, names: str) -> dict[str, Any]:
        """The arguments by name; what does not depend on the input is filled in, with BATCH for the batch size.

        Raises:
            UnsupportedModelError: there are other arguments.
        """
        known = names.split()
        values = dict(zip(known, self.node.args, strict=False)) | self.node.kwargs
        other = [name for name, value in self.node.kwargs.items() if name not in known and value is not None]
        if other or len(self.node.args) > len(known):
            raise self.refused(f"has {other[0] if other else 'too many arguments'} set", "Leave it out.")
        return dict(fx.node.map_arg({name: values[name] for name in known if name in values}, self._constant))

    def rest(self) -> tuple[Any, ...]:
        """The arguments after the first, a tuple of them as if it were spread."""
        values = (*self.node.args[1:], *(value for name, value in self.node.kwargs.items() if name != "input"))
        spread = values[0] if len(values) == 1 and isinstance(values[0], tuple | list) else values
        return tuple(fx.node.map_arg(list(spread), self._constant))

    def first(self) -> fx.Node:
        """The tensor that the function works on: its first argument."""
        return self.require_value(self.node.args[0] if self.node.args else self.node.kwargs.get("input"))

    def shape(self, node: fx.Node | None = None) -> Shape:
        """Shape of a tensor, by default of the result."""
        return self._observed.shapes[(node or self.node).name]

    def kind(self, node: fx.Node | None = None) -> Type:
        """Type of number and device of a tensor, by default of the result."""
        return self._observed.types[(node or self.node).name]

    def parts(self, node: fx.Node) -> tuple[Shape, ...] | None:
        """Shapes of the tensors in a list; None for anything else."""
        return self._observed.parts.get(node.name)

    def own(self, value: Any) -> Own | None:
        """The network's own tensor that a value is."""
        return self._observed.own.get(value.name) if isinstance(value, fx.Node) else None

    def is_value(self, value: Any) -> bool:
        """Whether it is a tensor that depends on the input, the samples in front."""
        return (
            isinstance(value, fx.Node)
            and value.name in self._observed.shapes
            and value.name not in self._observed.batchless
            and value.name not in self._observed.own
        )

    def require_value(self, value: Any) -> fx.Node:
        """The one tensor that a function works on."""
        if not self.is_value(value):
            raise self.refused("works on something else than samples")
        assert isinstance(value, fx.Node)
        return value

    def dim(self, value: Any, source: fx.Node) -> int:
        """A dimension of a tensor, counted from the front, that is not the samples'."""
        rank = len(self.shape(source))
        if not isinstance(value, int) or value % rank == 0:
            raise self.refused(
                "mixes a sample with the other samples of its batch", "Name another dimension than the first."
            )
        return value % rank

    def calls_layer(self, node: fx.Node, layer: type[nn.Module]) -> bool:
        """Whether a node is the call of a layer of that kind."""
        return node.op == "call_module" and isinstance(self._network.get_submodule(str(node.target)), layer)

    def refused(self, reason: str, hint: str = HINT) -> UnsupportedModelError:
        """The error for a call that no layer can stand for."""
        return UnsupportedModelError(f"{describe(self.node)} at {self.place!r} {reason}.", node=self.place, hint=hint)

    def _constant(self, node: fx.Node) -> Any:
        return self._observed.constants.get(node.name, node)


def describe(node: fx.Node) -> str:
    """The node's operation in the words of the network's author."""
    return node.name.rstrip("_0123456789") if node.op == "call_function" else str(node.target).rstrip("_")


def is_number(value: Any) -> bool:
    """Whether it is a number, no flag."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_setting(value: Any) -> bool:
    """Whether a layer may be made with it: it depends on no input and on no number of samples."""
    parts = value if isinstance(value, tuple | list) else (value,)
    return not any(isinstance(part, BatchSize | fx.Node) for part in parts)
