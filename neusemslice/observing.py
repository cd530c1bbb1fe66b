"""What the nodes of a traced graph give for batches of two sizes: what differs between them depends on the batch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from neusemslice.errors import UnsupportedModelError

Shape = tuple[int, ...]


class BatchSize:
    """Stands where a traced graph computes with the number of samples."""


BATCH = BatchSize()


@dataclass(frozen=True)
class Observations:
    """Results of a traced graph's nodes by name.

    Attributes:
        shapes: of every tensor, for the batch of the example input.
        constants: numbers, shapes and flags that no tensor holds, with `BATCH` for the number of samples.
        batchless: tensors without a dimension of samples in front.
    """

    shapes: dict[str, Shape]
    constants: dict[str, Any]
    batchless: frozenset[str]


def observe(traced: fx.GraphModule, example_input: Tensor) -> Observations:
    """Run the graph on the example input, and on one sample more.

    Raises:
        UnsupportedModelError: the graph fails on one of them.
    """
    longer = torch.cat([example_input, example_input[:1]])
    first, second = (_results(traced, inputs) for inputs in (example_input, longer))
    shapes = {name: value for name, (is_tensor, value) in first.items() if is_tensor}
    constants = {
        name: _merge(value, second[name][1], len(example_input))
        for name, (is_tensor, value) in first.items()
        if not is_tensor
    }
    batchless = {
        name
        for name, shape in shapes.items()
        if shape[:1] != (len(example_input),) or second[name][1] != (len(longer), *shape[1:])
    }
    return Observations(shapes, constants, frozenset(batchless))


def _merge(one: Any, other: Any, samples: int) -> Any:
    """The value where both runs agree, BATCH where they count the samples, None where they differ otherwise."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return tuple(_merge(first, second, samples) for first, second in zip(one, other, strict=True))
    if one == other:
        return one
    return BATCH if (one, other) == (samples, samples + 1) else None


def _results(traced: fx.GraphModule, inputs: Tensor) -> dict[str, tuple[bool, Any]]:
    observer = _Observer(traced, tuple(inputs.shape))
    with torch.no_grad():
        observer.run(inputs)
    return observer.results


class _Observer(fx.Interpreter):
    """Runs a graph and keeps of each node whether it is a tensor, and its shape or value."""

    def __init__(self, traced: fx.GraphModule, input_shape: Shape) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self.input_shape = input_shape
        self.results: dict[str, tuple[bool, Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            place = str(n.target) if n.op == "call_module" else n.name
            raise UnsupportedModelError(
                f"The network fails at {place!r} on an input of shape {self.input_shape}: {reason}",
                node=place,
                hint="It has to run on the example input's shape and type, and on batches of any size.",
            ) from error
        if isinstance(value, Tensor):
            self.results[n.name] = True, tuple(value.shape)
        elif isinstance(value, tuple | list):
            self.results[n.name] = False, tuple(tuple(v.shape) if isinstance(v, Tensor) else v for v in value)
        else:
            self.results[n.name] = False, value
        return value
