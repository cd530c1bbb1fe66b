"""What the nodes of a traced graph give for batches of two sizes: what differs between them depends on the batch."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from neusemslice.errors import UnsupportedModelError

Shape = tuple[int, ...]
Type = tuple[torch.dtype, torch.device]


class BatchSize:
    """Stands where a traced graph computes with the number of samples."""


BATCH, VARIES = BatchSize(), BatchSize()
"""The number itself, and what else depends on it."""

_METADATA = frozenset(
    {
        *("size", "dim", "ndimension", "numel", "nelement", "stride", "element_size", "get_device"),
        *("is_floating_point", "is_contiguous", "new_zeros", "new_ones", "new_full"),
    }
)
"""Methods whose result depends on no number in a tensor."""
_METADATA_FUNCTIONS = (torch.numel, torch.is_floating_point, torch.zeros_like, torch.ones_like, torch.full_like)
_METADATA_ATTRIBUTES = frozenset({"shape", "ndim", "device", "dtype", "is_cuda", "layout"})
_PLAIN = (int, float, str, torch.dtype, torch.device, torch.memory_format, type(None))


@dataclass(frozen=True)
class Own:
    """A tensor that depends on no input: a parameter or buffer, or what is computed of them alone.

    Attributes:
        tensor: its value; one that is repeated for each sample has a first dimension of one.
        origins: paths of the parameters and buffers that it is computed of.
        learned: whether one of them is a parameter.
    """

    tensor: Tensor
    origins: tuple[str, ...]
    learned: bool


@dataclass(frozen=True)
class Observations:
    """Results of a traced graph's nodes by name.

    Attributes:
        shapes: of every tensor, for the batch of the example input.
        types: type of number and device of every tensor.
        parts: shapes of the tensors in a list.
        constants: numbers, shapes and flags that no tensor holds, with `BATCH` for the number of samples and
            `VARIES` for what else depends on it.
        own: tensors that depend on no input and are the same for every number of samples.
        batchless: tensors without a dimension of samples in front.
    """

    shapes: dict[str, Shape]
    types: dict[str, Type]
    parts: dict[str, tuple[Shape, ...]]
    constants: dict[str, Any]
    own: dict[str, Own]
    batchless: frozenset[str]


def observe(traced: fx.GraphModule, example_input: Tensor) -> Observations:
    """Run the graph on the example input, and on one sample more.

    Raises:
        UnsupportedModelError: the graph fails on one of them, or does not return a tensor that depends on its input.
    """
    longer = torch.cat([example_input, example_input[:1]])
    samples = len(example_input)
    origins = _origins(traced)
    first, second = (_results(traced, inputs, origins.keys()) for inputs in (example_input, longer))
    (output,) = traced.graph.find_nodes(op="output")
    if output.name not in first.types or output.args[0].name in origins:
        raise UnsupportedModelError(
            "forward returns something else than one tensor that its layers compute.",
            node="output",
            hint="Return the logits alone.",
        )
    parameters = dict(traced.named_parameters(remove_duplicate=False))
    own = {}
    for name in first.tensors.keys() & second.tensors.keys():
        tensor = _for_any_batch(first.tensors[name], second.tensors[name], samples)
        if tensor is not None:
            own[name] = Own(tensor, origins[name], any(path in parameters for path in origins[name]))
    return Observations(
        shapes=first.shapes,
        types=first.types,
        parts=first.parts,
        constants={
            name: _for_any_size(value, second.constants.get(name, VARIES), samples)
            for name, value in first.constants.items()
        },
        own=own,
        batchless=frozenset(
            name
            for name, shape in first.shapes.items()
            if shape[:1] != (samples,) or second.shapes[name] != (samples + 1, *shape[1:])
        ),
    )


def _origins(traced: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """Nodes that depend on no number in the input, with the parameters and buffers that each is computed of."""
    origins: dict[str, tuple[str, ...]] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            origins[node.name] = (str(node.target),)
        elif _reads_metadata(node):
            origins[node.name] = ()
        elif node.op.startswith("call_") and all(source.name in origins for source in node.all_input_nodes):
            found = chain.from_iterable(origins[source.name] for source in node.all_input_nodes)
            held = _state_of(traced.get_submodule(str(node.target)), node) if node.op == "call_module" else ()
            origins[node.name] = tuple(dict.fromkeys((*found, *held)))
    return origins


def _reads_metadata(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METADATA
    if node.target is getattr:
        return node.args[1] in _METADATA_ATTRIBUTES
    return node.target in _METADATA_FUNCTIONS


def _state_of(layer: nn.Module, node: fx.Node) -> tuple[str, ...]:
    return tuple(f"{node.target}.{name}" for name in layer.state_dict())


def _for_any_batch(one: Tensor, other: Tensor, samples: int) -> Tensor | None:
    """The tensor that two batches agree on, one of one sample if it is repeated for each; None if they differ."""
    if one is other or torch.equal(one, other):
        return one.detach()
    repeats = one.shape[:1] == (samples,) and other.shape == (samples + 1, *one.shape[1:])
    same = repeats and bool((other == other[:1]).all()) and torch.equal(one[:1], other[:1])
    return other[:1].detach() if same else None


def _for_any_size(one: Any, other: Any, samples: int) -> Any:
    """The value where both runs agree, BATCH where they count the samples, VARIES where they differ otherwise."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return tuple(_for_any_size(first, second, samples) for first, second in zip(one, other, strict=True))
    if one == other:
        return one
    return BATCH if (one, other) == (samples, samples + 1) else VARIES


def _results(traced: fx.GraphModule, inputs: Tensor, kept: Any) -> "_Observer":
    observer = _Observer(traced, tuple(inputs.shape), frozenset(kept))
    with torch.no_grad():
        observer.run(inputs)
    return observer


class _Observer(fx.Interpreter):
    """Runs a graph and records of each node what kind of result it gives; of `kept` ones also the tensors."""

    def __init__(self, traced: fx.GraphModule, input_shape: Shape, kept: frozenset[str]) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self.input_shape, self.kept = input_shape, kept
        self.shapes: dict[str, Shape] = {}
        self.types: dict[str, Type] = {}
        self.parts: dict[str, tuple[Shape, ...]] = {}
        self.constants: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}

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
            self.shapes[n.name] = tuple(value.shape)
            self.types[n.name] = value.dtype, value.device
            if n.name in self.kept:
                self.tensors[n.name] = value
        elif isinstance(value, tuple | list) and value and all(isinstance(part, Tensor) for part in value):
            self.parts[n.name] = tuple(tuple(part.shape) for part in value)
        elif n.name in self.kept and _is_plain(value):
            self.constants[n.name] = tuple(value) if isinstance(value, tuple | list) else value
        return value


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple | list) and all(map(_is_plain, value)))
