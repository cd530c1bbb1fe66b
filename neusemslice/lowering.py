"""Any supported network in one canonical form: a torch.fx graph of `nn` layers, each called once, none in place."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from neusemslice.calls import HINT, Call, Lifted, describe
from neusemslice.copying import unbound
from neusemslice.errors import ArchitectureError, UnsupportedModelError
from neusemslice.graph_layers import Attention, QueryKeyValue
from neusemslice.layers import build_layer, describe_layer
from neusemslice.lifting import lift
from neusemslice.observing import Observations, observe
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
_ATTENTION_ARGUMENTS = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
_ROUNDING = 1e-5
"""Allowed, relative to the largest output, where torch itself has several ways to compute; the rest keeps its bits."""


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
    lowered = _Lowering(traced, observe(traced, example_input)).run()
    rounding = _ROUNDING if _rounds_differently(traced) else 0.0
    for inputs in (example_input, probe_like(example_input)):
        with torch.no_grad(), _slow_attention():
            expected, computed = copied(inputs), lowered(inputs)
        if expected.shape != computed.shape or not _agree(expected, computed, rounding):
            raise UnsupportedModelError(
                "The network does not compute its own traced graph on an input: its output differs or has NaN.",
                node="output",
                hint="Look for in-place changes of a tensor that is used again, randomness in eval mode, NaN weights.",
            )
    return lowered


def probe_like(example_input: Tensor, samples: int = 3) -> Tensor:
    """Drawn inputs of the example's kind, the same on every call: zeros would hide most differences."""
    drawn = torch.randn(samples, *example_input.shape[1:], generator=torch.Generator().manual_seed(0))
    return drawn.to(example_input.device, example_input.dtype)


def _agree(expected: Tensor, computed: Tensor, rounding: float) -> bool:
    return bool(((expected - computed).abs() <= rounding * expected.abs().max()).all())


def _rounds_differently(traced: fx.GraphModule) -> bool:
    """Whether the network computes in a way that torch itself rounds in several: attention, other memory formats."""
    attends = any(isinstance(layer, nn.MultiheadAttention) for layer in traced.modules())
    return attends or any("memory_format" in node.kwargs for node in traced.graph.nodes)


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Without torch's fused inference path, whose rounding depends on the hardware."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


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
    return _called_with_one_argument(copied.eval().requires_grad_(requires_grad=False))


def _same_module(network: nn.Module, one: str, other: str) -> bool:
    return network.get_submodule(one) is network.get_submodule(other)


class _Tracer(fx.Tracer):
    """Sees the leaves of a canonical form as leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _listed_type(m) is not None or super().is_leaf_module(m, module_qualified_name)


def _trace(network: nn.Module) -> fx.GraphModule:
    try:
        traced = fx.GraphModule(network, _Tracer().trace(network))
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


def _called_with_one_argument(network: nn.Module) -> nn.Module:
    """The network, whose forward takes its first argument alone if the others have defaults."""
    kind = type(network)
    others = list(inspect.signature(kind.forward).parameters.values())[2:]
    if others and all(other.default is not other.empty for other in others):

        def forward(self: nn.Module, value: Any) -> Any:
            return kind.forward(self, value)

        network.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return network


def _listed_type(layer: nn.Module) -> type[nn.Module] | None:
    """The supported type that a layer is of, or that its class inherits its whole computation from."""
    for kind in type(layer).__mro__:
        if kind in SUPPORTED:
            return kind
        if "forward" in vars(kind) or "_conv_forward" in vars(kind):
            return None
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


class _Lowering:
    """Rewrites one traced graph, node by node."""

    def __init__(self, traced: fx.GraphModule, observed: Observations) -> None:
        self.traced, self.observed = traced, observed
        self.graph = fx.Graph()
        self.layers: dict[str, nn.Module] = {}
        self.own_paths = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}

    def run(self) -> fx.GraphModule:
        values: dict[fx.Node, fx.Node] = {}
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                values[node] = self.graph.placeholder(INPUT)
            elif node.op == "output":
                self.graph.output(values[self._require_value(node.args[0])])
            elif node.name in self.observed.own:
                continue  # what uses it takes the tensor itself
            elif node.op == "call_module" and isinstance(
                attention := self.traced.get_submodule(str(node.target)), nn.MultiheadAttention
            ):
                value = values[_attended_value(attention, node)]
                for name, part in _attention_layers(attention):
                    path = f"{node.target}.{name}"
                    value = self._place(path, _rebuild(part, path), [value])
                values[node] = value
            elif node.op == "call_module":
                path, layer, sources = self._module(node)
                values[node] = self._place(path, layer, [values[source] for source in sources])
            elif node.op != "get_attr" and node.name in self.observed.shapes:
                lifted = lift(Call(node, self._at(node), self.traced, self.observed))
                if isinstance(lifted, Lifted):
                    values[node] = self._place_lifted(lifted, node, [values[source] for source in lifted.inputs])
                else:
                    values[node] = values[lifted]
        lowered = unbound(fx.GraphModule(_modules(self.layers), self.graph))
        return lowered.eval().requires_grad_(requires_grad=False)

    def _place(self, path: str, layer: nn.Module, sources: list[fx.Node]) -> fx.Node:
        self.layers[path] = layer
        return self.graph.call_module(path, tuple(sources))

    def _place_lifted(self, lifted: Lifted, node: fx.Node, sources: list[fx.Node]) -> fx.Node:
        """A function's layers, one after the other."""
        for layer in (lifted.layer, *lifted.then):
            kept = lifted.path if layer.state_dict() else None
            path = self._fresh(kept or _join(_caller(node), type(layer).__name__.lower()))
            sources = [self._place(path, _rebuild(layer, self._at(node)), sources)]
        return sources[0]

    def _require_value(self, value: Any) -> fx.Node:
        if not isinstance(value, fx.Node) or value.op == "get_attr":
            raise UnsupportedModelError(
                "forward returns something else than what its layers compute.", node="output", hint="Return the logits."
            )
        return value

    def _module(self, node: fx.Node) -> tuple[str, nn.Module, tuple[fx.Node, ...]]:
        """A node's layer, the path where the canonical form keeps it, and what it works on."""
        path = str(node.target)
        layer = self.traced.get_submodule(path)
        sources = tuple(arg for arg in node.args if isinstance(arg, fx.Node))
        if len(sources) != len(node.args) or node.kwargs:
            raise UnsupportedModelError(
                f"{path!r} is called with more than tensors.", node=path, hint="Keep settings in the layer."
            )
        if node.name in self.observed.batchless:
            raise UnsupportedModelError(
                f"{path!r} ({type(layer).__name__}) does not keep the samples of a batch apart.",
                node=path,
                hint="The first dimension has to be the batch, from the input to the output.",
            )
        for source in sources:
            if source.op == "get_attr" or source.name in self.observed.own:
                raise UnsupportedModelError(
                    f"{describe(source)!r}, a tensor of the network's own, is an input of {path!r}.",
                    node=path,
                    hint="Parameters belong into layers (nn.Linear, nn.BatchNorm2d, ...).",
                )
        if path not in self.layers:
            return path, _rebuild(layer, path), sources
        if layer.state_dict():
            raise UnsupportedModelError(
                f"{path!r} ({type(layer).__name__}) is called twice with the same weights.",
                node=path,
                hint="Give each call a layer of its own.",
            )
        container, _, name = path.rpartition(".")
        again = _join(container, type(layer).__name__.lower()) if name.isdigit() else path
        return self._fresh(again), _rebuild(layer, path), sources

    def _at(self, node: fx.Node) -> str:
        return _join(_caller(node), describe(node))

    def _fresh(self, path: str) -> str:
        """`path`, numbered if a layer or a container of layers has it already."""
        taken = self.own_paths | self.layers.keys()
        fresh, number = path, 0
        while any(other == fresh or other.startswith(f"{fresh}.") for other in taken):
            number += 1
            fresh = f"{path}_{number}"
        return fresh


def _attended_value(layer: nn.MultiheadAttention, node: fx.Node) -> fx.Node:
    """The one value that an attention is of, to itself."""
    settings = dict(zip(_ATTENTION_ARGUMENTS, node.args, strict=False)) | node.kwargs
    same = settings["query"] is settings.get("key") and settings["query"] is settings.get("value")
    masked = any(settings.get(name) is not None for name in ("key_padding_mask", "attn_mask"))
    plain = layer.batch_first and layer._qkv_same_embed_dim and layer.bias_k is None and not layer.add_zero_attn  # noqa: SLF001 torch shows it nowhere else
    if not same or masked or not plain or settings.get("need_weights", True) or settings.get("is_causal"):
        raise UnsupportedModelError(
            f"{node.target!r} (MultiheadAttention) is more than the attention of one value to itself.",
            node=str(node.target),
            hint="Call it as attention(x, x, x, need_weights=False), with batch_first=True and no mask.",
        )
    query = settings["query"]
    assert isinstance(query, fx.Node)
    return query


def _attention_layers(layer: nn.MultiheadAttention) -> list[tuple[str, nn.Module]]:
    """What an attention is made of: names and layers, one after the other."""
    has_bias = layer.in_proj_bias is not None
    projection = QueryKeyValue(layer.embed_dim, layer.num_heads, layer.head_dim, has_bias)
    tensors = {"weight": layer.in_proj_weight, "bias": layer.in_proj_bias}
    projection.load_state_dict({name: tensor for name, tensor in tensors.items() if tensor is not None}, assign=True)
    output = nn.Linear(layer.embed_dim, layer.embed_dim, bias=has_bias)
    output.load_state_dict(layer.out_proj.state_dict(), assign=True)
    return [("in_proj", projection), ("attention", Attention(layer.num_heads, layer.dropout)), ("out_proj", output)]


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
    kind = _listed_type(layer)
    if kind is None:
        raise UnsupportedModelError(
            f"{path!r} is a {type(layer).__name__}, which cannot be sliced.",
            node=path,
            hint=HINT,
        )
    try:
        fresh = build_layer(describe_layer(layer, kind), path)
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
