"""Architectures as data: a network from a JSON spec, never from code that came with it.

    {"builder": "torchvision/vgg16_bn" | "mlp" | "layers" | "graph" | a registered name,
     "kwargs": {...},                                                  # what that builder takes
     "replace": {"classifier": {"type": "Linear", "kwargs": {...}}},   # swaps submodules by path
     "input_shape": [3, 32, 32]}                                       # one sample, without the batch axis

Networks are born on the `meta` device, so a spec costs no memory whatever sizes it names; the values come from a
weights file (`neusemslice.weights.load_network`).
"""

import math
from typing import Any

from torch import fx, nn

from neusemslice.builders import find_builder
from neusemslice.errors import ArchitectureError
from neusemslice.graph_spec import describe_graph
from neusemslice.layer_types import show, suggest
from neusemslice.layers import build_layer

MAX_PARAMETERS = 2_000_000_000
MAX_LAYERS = 10_000
MAX_INPUT_ELEMENTS = 2**26

_FIELDS = ("builder", "kwargs", "replace", "input_shape")


def build_network(spec: Any, *, max_parameters: int = MAX_PARAMETERS, max_layers: int = MAX_LAYERS) -> nn.Module:
    """The network a spec describes, its parameters on the `meta` device.

    Args:
        spec: parsed JSON from anyone; everything in it is checked.
        max_parameters: most parameters accepted.
        max_layers: most modules accepted.

    Raises:
        ArchitectureError: the spec is malformed, names an unknown builder, layer or keyword, or describes a network
            that is too large or ties parameters; `where` points into the spec.
    """
    _check_fields(spec)
    builder = spec.get("builder")
    if not isinstance(builder, str):
        raise ArchitectureError(f"builder is {show(builder)}.", where="builder", hint="Name one, such as 'layers'.")
    build = find_builder(builder)
    kwargs = _json_object(spec, "kwargs")
    if any(isinstance(value, list) and len(value) > max_layers for value in kwargs.values()):
        raise ArchitectureError(
            f"kwargs lists more than {max_layers} layers.", where="kwargs", hint="Use fewer layers."
        )
    network = build(kwargs)
    _replace(network, _json_object(spec, "replace"))
    _check_network(network, max_parameters, max_layers)
    return network


def input_shape_of(spec: Any) -> tuple[int, ...]:
    """Shape of one sample, without the batch axis: one to four sizes.

    Raises:
        ArchitectureError: the spec is malformed, or the shape is missing, not of positive integers, or immense.
    """
    _check_fields(spec)
    shape = spec.get("input_shape")
    if not isinstance(shape, list) or not _is_input_shape(shape):
        raise ArchitectureError(
            f"input_shape is {show(shape)}.",
            where="input_shape",
            hint=f"Give 1 to 4 positive integers such as [3, 32, 32], at most {MAX_INPUT_ELEMENTS} elements in all.",
        )
    return tuple(shape)


def describe_network(network: fx.GraphModule, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """The inverse of `build_network` for a canonical graph: the spec whose network has the same state-dict keys.

    Args:
        network: nodes are one placeholder, layers of the closed list with one input each, and one output.
        input_shape: shape of one sample, without the batch axis.

    Raises:
        ArchitectureError: a node or layer cannot be written as data, or the shape is refused.
    """
    spec = {"builder": "graph", "kwargs": describe_graph(network), "input_shape": list(input_shape)}
    input_shape_of(spec)
    return spec


def _is_input_shape(shape: list[Any]) -> bool:
    sizes = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape)
    return sizes and 1 <= len(shape) <= 4 and math.prod(shape) <= MAX_INPUT_ELEMENTS


def _check_fields(spec: Any) -> None:
    if not isinstance(spec, dict):
        raise ArchitectureError(
            f"The architecture is {show(spec)}.", hint="Give a JSON object with builder and kwargs."
        )
    for field in spec:
        if field not in _FIELDS:
            raise ArchitectureError(
                f"Unknown field {show(field)}.", where=str(field), hint=suggest(str(field), list(_FIELDS))
            )


def _json_object(spec: dict[str, Any], field: str) -> dict[str, Any]:
    values = spec.get(field, {})
    if not isinstance(values, dict):
        raise ArchitectureError(f"{field} is {show(values)}.", where=field, hint="Give a JSON object.")
    return values


def _replace(network: nn.Module, replace: dict[str, Any]) -> None:
    for path, description in replace.items():
        layer = build_layer(description, f"replace.{path}")
        try:
            network.get_submodule(path)
            network.set_submodule(path, layer)
        except (AttributeError, ValueError) as error:
            paths = [name for name, _ in network.named_modules() if name]
            raise ArchitectureError(
                f"replace names {show(path)}, which is no submodule.",
                where=f"replace.{path}",
                hint=suggest(path, paths[:100]),
            ) from error


def _check_network(network: nn.Module, max_parameters: int, max_layers: int) -> None:
    layers = sum(1 for _ in network.modules())
    parameters = sum(parameter.numel() for parameter in network.parameters())
    for count, most, what in ((layers, max_layers, "modules"), (parameters, max_parameters, "parameters")):
        if count > most:
            raise ArchitectureError(
                f"The network has {count:,} {what}; at most {most:,} are accepted.", hint="Use a smaller network."
            )
    first: dict[int, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name:
            raise ArchitectureError(
                f"Parameters {other!r} and {name!r} are one tensor.",
                where=name,
                hint="Build a network that ties nothing.",
            )
