"""Any supported network in one canonical form: a torch.fx graph of `nn` layers, each called once, none in place."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from neusemslice.errors import ArchitectureError, UnsupportedModelError
from neusemslice.layers import build_layer, describe_layer
from neusemslice.lifting import HINT, describe, is_shape_query, lift, unknown_operation
from neusemslice.roles import SUPPORTED

INPUT = "input"
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def lower(network: nn.Module, example_input: Tensor) -> fx.GraphModule:
    """The network's canonical form, in eval mode and without gradients; `network` itself is left as it is.

    Layers keep their paths and parameter names; functions become layers with fresh names beside their caller's
    layers. Hooks are no part of the network and are not taken over.

    Raises:
        UnsupportedModelError: the network cannot be traced, or holds an operation that is no known layer, or its
            canonical form does not compute the same bits on `example_input`.
    """
    copied = _copy_for_tracing(network)
    traced = _trace(copied)
    lowered = _Lowering(traced, _shapes(traced, example_input)).run()
    with torch.no_grad():
        expected, computed = copied(example_input), lowered(example_input)
    if not torch.equal(expected, computed):
        raise UnsupportedModelError(
            "The network does not compute its own traced graph on the example input: its output differs or has NaN.",
            node="output",
            hint="Look for in-place changes of a tensor that is used again, randomness in eval mode, and NaN weights.",
        )
    return lowered


def _copy_for_tracing(network: nn.Module) -> nn.Module:
    try:
        copied = copy.deepcopy(network)
    except Exception as error:
        raise UnsupportedModelError(
            f"The network cannot be copied: {_first_line(error)}",
            node="input",
            hint="Remove reparametrised weights (torch.nn.utils) and tensors that carry gradients.",
        ) from error
    for module in copied.modules():
        for hooks in _HOOKS:
            getattr(module, hooks).clear()
    owners: dict[int, str] = {}
    for name, parameter in copied.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        if owners.setdefault(id(parameter), owner) != owner and not _same_module(copied, owners[id(parameter)], owner):
            raise UnsupportedModelError(
                f"{name!r} is the same tensor as a parameter of {owners[id(parameter)]!r}: tied weights.",
                node=owner,
                hint="Give each layer weights of its own.",
            )
    return copied.eval().requires_grad_(requires_grad=False)


def _same_module(network: nn.Module, one: str, other: str) -> bool:
    return network.get_submodule(one) is network.get_submodule(other)


def _trace(network: nn.Module) -> fx.GraphModule:
    try:
        traced = fx.GraphModule(network, fx.Tracer().trace(network))
    except Exception as error:
        raise UnsupportedModelError(
            f"The network cannot be traced: {_first_line(error)}",
            node="input",
            hint="forward must run the same layers for every input: no `if`, loop or conversion on a tensor's values.",
        ) from error
    traced.graph.eliminate_dead_code()
    inputs = [node.name for node in traced.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise UnsupportedModelError(
            f"forward takes {len(inputs)} inputs ({', '.join(inputs)}); one is supported.",
            node="input",
            hint="Wrap the network in a module whose forward takes the one tensor that varies.",
        )
    if not isinstance(next(iter(reversed(traced.graph.nodes))).args[0], fx.Node):
        raise UnsupportedModelError(
            "forward returns more than one tensor.", node="output", hint="Return the logits alone."
        )
    return traced


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _shapes(traced: fx.GraphModule, example_input: Tensor) -> dict[str, tuple[int, ...]]:
    recorder = _ShapeRecorder(traced)
    try:
        with torch.no_grad():
            recorder.run(example_input)
    except Exception as error:
        raise UnsupportedModelError(
            f"The network fails on an example input of shape {tuple(example_input.shape)}: {_first_line(error)}",
            node="input",
            hint="The example input needs a batch dimension and the shape and type that the first layer expects.",
        ) from error
    return recorder.shapes


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph and keeps the shape of each tensor by its node's name."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape)
        return value


class _Lowering:
    """Rewrites one traced graph, node by node."""

    def __init__(self, traced: fx.GraphModule, shapes: dict[str, tuple[int, ...]]) -> None:
        self.traced, self.shapes = traced, shapes
        self.graph = fx.Graph()
        self.layers: dict[str, nn.Module] = {}
        self.own_paths = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}

    def run(self) -> fx.GraphModule:
        values: dict[fx.Node, fx.Node] = {}
        for node in self.traced.graph.nodes:
            if is_shape_query(node):
                continue
            if node.op == "placeholder":
                values[node] = self.graph.placeholder(INPUT)
                continue
            if node.op == "output":
                self.graph.output(values[node.args[0]])
                continue
            source = self._source(node)
            if node.op == "call_method" and node.target == "contiguous":
                values[node] = values[source]
                continue
            path, layer = self._layer(node, source)
            self.layers[path] = layer
            values[node] = self.graph.call_module(path, (values[source],))
        lowered = fx.GraphModule(_modules(self.layers), self.graph)
        return lowered.eval().requires_grad_(requires_grad=False)

    def _source(self, node: fx.Node) -> fx.Node:
        """The one value that a node works on."""
        place = self._place(node)
        if node.op == "get_attr":
            raise UnsupportedModelError(
                f"{node.target!r} is used by forward itself, not by a layer.",
                node=place,
                hint="Put the tensor into a layer (nn.Linear, nn.Conv2d, ...).",
            )
        sources = [source for source in node.all_input_nodes if not is_shape_query(source)]
        if len(sources) > 1:
            raise UnsupportedModelError(
                f"{describe(node)} at {place!r} joins {'two' if len(sources) == 2 else len(sources)} branches.",
                node=place,
                hint="Networks that are one sequence of layers can be sliced.",
            )
        if not sources or node.args[:1] != (sources[0],):
            raise unknown_operation(node, place)
        return sources[0]

    def _layer(self, node: fx.Node, source: fx.Node) -> tuple[str, nn.Module]:
        """A node's layer, and the path where the canonical form keeps it."""
        if node.op != "call_module":
            layer = lift(node, self._place(node), self.shapes[source.name])
            return self._fresh(_join(_caller(node), type(layer).__name__.lower())), layer
        path = str(node.target)
        layer = self.traced.get_submodule(path)
        if len(node.args) != 1 or node.kwargs:
            raise UnsupportedModelError(
                f"{path!r} is called with more than one tensor.",
                node=path,
                hint="Networks of one branch can be sliced.",
            )
        if path not in self.layers:
            return path, _rebuild(layer, path)
        if layer.state_dict():
            raise UnsupportedModelError(
                f"{path!r} ({type(layer).__name__}) is called twice with the same weights.",
                node=path,
                hint="Give each call a layer of its own.",
            )
        return self._fresh(path), _rebuild(layer, path)

    def _place(self, node: fx.Node) -> str:
        return str(node.target) if node.op in ("call_module", "get_attr") else _join(_caller(node), describe(node))

    def _fresh(self, path: str) -> str:
        """`path`, numbered if a layer or a container of layers has it already."""
        taken = self.own_paths | self.layers.keys()
        fresh, number = path, 0
        while any(other == fresh or other.startswith(f"{fresh}.") for other in taken):
            number += 1
            fresh = f"{path}_{number}"
        return fresh


def _modules(layers: dict[str, nn.Module]) -> nn.Module:
    """The layers at their paths, with plain modules in between."""
    root = nn.Module()
    for path, layer in layers.items():
        *containers, name = path.split(".")
        parent = root
        for container in containers:
            if container not in dict(parent.named_children()):
                parent.add_module(container, nn.Module())
            parent = parent.get_submodule(container)
        parent.add_module(name, layer)
    return root


def _rebuild(layer: nn.Module, path: str) -> nn.Module:
    """The same layer made anew from its description and tensors: not in place, nothing attached to it."""
    if type(layer) not in SUPPORTED:
        raise UnsupportedModelError(
            f"{path!r} is a {type(layer).__name__}, which cannot be sliced.",
            node=path,
            hint=HINT,
        )
    try:
        fresh = build_layer(describe_layer(layer), path)
        fresh.load_state_dict(layer.state_dict(), assign=True)
    except (ArchitectureError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"{path!r} ({type(layer).__name__}) is not a plain layer: {' '.join(str(error).split())}",
            node=path,
            hint="Remove what was attached to it (torch.nn.utils.prune.remove, parametrize.remove_parametrizations).",
        ) from error
    return fresh


def _caller(node: fx.Node) -> str:
    """Path of the module whose forward called the node's function; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {"": None}
    return str(list(stack)[-1])


def _join(container: str, name: str) -> str:
    return f"{container}.{name}" if container else name
