"""Where the neurons of a network are: its sliceable layers, and the place at which each one's value is read."""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, fx, nn

from neusemslice.copying import copy_graph
from neusemslice.coupling import Couplings, Labels, find_couplings
from neusemslice.errors import UnsupportedModelError
from neusemslice.graph_layers import Reshape
from neusemslice.layers import describe_layer
from neusemslice.lowering import lower, probe_like
from neusemslice.observing import Shape
from neusemslice.roles import CARRIERS, HEADS, NORMS

_APART = 1000
"""Rounding errors that batches of other sizes may make."""


@dataclass(frozen=True)
class SliceableLayer:
    """A layer whose neurons can be kept or removed.

    Attributes:
        name: path of the producer, the convolution or linear layer.
        neurons: its output channels or features.
        branch: paths from the producer to the last layer that has it as only source and works on each neuron by itself
            (norms, activations, pools, depthwise convolutions).
        read_node: the one of them whose output is the neurons' value: the last that can move a zero. From there on,
            setting a neuron to zero is removing it.
        axis: dimension of that value along which the neurons are.
        spatial: positions per neuron in that value.
    """

    name: str
    neurons: int
    branch: tuple[str, ...]
    read_node: str
    axis: int
    spatial: int

    def per_neuron(self, value: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch neurons positions"]:
        """The read node's output with one row per neuron (also when a flatten lies between)."""
        return value.movedim(self.axis, 1).reshape(len(value), self.neurons, self.spatial)


@dataclass(frozen=True, eq=False)
class SliceableModel:
    """A network in canonical form, in eval mode and without gradients. Made by `trace`.

    Attributes:
        graph_module: the canonical form; nodes are called by the paths of their layers.
        input_shape: shape of one sample.
        categories: number of outputs.
        sliceable_layers: in forward order, without the final classifier, whose neurons are the categories.
        logits_node: path of the layer that computes the logits: the last one, or the one before a trailing softmax.
        fingerprint: SHA-256 of the structure and all tensors.
        couplings: which values hold which neurons, and which neurons stay or go together.
    """

    graph_module: fx.GraphModule
    input_shape: tuple[int, ...]
    categories: int
    sliceable_layers: tuple[SliceableLayer, ...]
    logits_node: str
    fingerprint: str
    couplings: Couplings

    @property
    def coupled(self) -> tuple[tuple[str, ...], ...]:
        """Sets of sliceable layers whose neurons stay or go together, since their values are added or multiplied."""
        return self.couplings.coupled(layer.name for layer in self.sliceable_layers)

    @property
    def branches(self) -> tuple[str, ...]:
        """Coupled layers whose own branch can lose neurons that the sum keeps."""
        balanced = {balance.layer for balance in self.couplings.balances}
        return tuple(name for names in self.coupled for name in names if name not in balanced)

    def forward(self, inputs: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch categories"]:
        """The network's own output, which a trailing softmax makes probabilities."""
        outputs: Tensor = self.graph_module(inputs)
        return outputs

    __call__ = forward

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.graph_module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' type."""
        return next(self.graph_module.parameters()).dtype

    def to(self, device: torch.device | str) -> "SliceableModel":
        """The same model on another device; this one stays where it is."""
        return replace(self, graph_module=copy_graph(self.graph_module).to(device))

    def layer(self, name: str) -> SliceableLayer:
        """The sliceable layer of that name.

        Raises:
            KeyError: there is none.
        """
        return {layer.name: layer for layer in self.sliceable_layers}[name]


def trace(network: nn.Module, example_input: Float[Tensor, "batch ..."]) -> SliceableModel:
    """The network in the form that everything else works on; `network` itself is left as it is, its hooks are left out.

    Supported are graphs of convolutions (1d to 3d, also grouped and depthwise), linear layers, norms, elementwise
    activations, pooling, flatten, dropout, sums, products and concatenations of branches, and self-attention, written
    as layers or as functions. Layers whose neurons cannot be removed exactly stay whole: they are not sliceable.

    Args:
        network: any module; its parameters are copied.
        example_input: [batch, *input shape], any values that give finite outputs; moved to the network's device.

    Raises:
        UnsupportedModelError: naming the node that cannot be sliced exactly, and why.
    """
    example_input = _checked(network, example_input)
    graph_module = lower(network, example_input)
    shapes = _shapes(graph_module, example_input)
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            _check_exact(graph_module.get_submodule(node.target), node.target)
    _check_samples_apart(graph_module, probe_like(example_input))
    logits_node = _logits_node(graph_module)
    if len(shapes[logits_node]) != 2:
        raise UnsupportedModelError(
            f"The output has shape {shapes[logits_node]}, not [batch, categories].",
            node=logits_node,
            hint="The network has to give one number for each category, or for each output of a regression.",
        )
    couplings = find_couplings(graph_module, shapes)
    layers = _sliceable_layers(graph_module, couplings, shapes)
    if not layers:
        raise UnsupportedModelError(
            "The network has no layer to slice: no producer's neurons can be removed exactly.",
            node=logits_node,
            hint="At least one hidden convolution or linear layer is needed whose neurons nothing mixes.",
        )
    return SliceableModel(
        graph_module=graph_module,
        input_shape=tuple(example_input.shape[1:]),
        categories=shapes[logits_node][1],
        sliceable_layers=layers,
        logits_node=logits_node,
        fingerprint=_fingerprint(graph_module),
        couplings=couplings,
    )


def _checked(network: nn.Module, example_input: Any) -> Tensor:
    """The example input as the network takes it."""
    parameter = next(network.parameters(), None)
    reason = hint = ""
    if parameter is None:
        reason, hint = "The network has no parameters.", "Give a trained network."
    elif isinstance(network, torch.jit.ScriptModule):
        reason, hint = "The network is TorchScript.", "Give the nn.Module it was made from."
    elif any(isinstance(p, nn.UninitializedParameter) or p.is_meta for p in network.parameters()):
        reason, hint = "The network has parameters without values.", "Initialise lazy layers, load the weights."
    elif not isinstance(example_input, Tensor) or not example_input.ndim or not len(example_input):
        given = (
            f"shape {tuple(example_input.shape)}" if isinstance(example_input, Tensor) else type(example_input).__name__
        )
        reason, hint = f"The example input is of {given}.", "Give a tensor [batch, *input shape] with a sample or more."
    if reason:
        raise UnsupportedModelError(reason, node="input", hint=hint)
    assert parameter is not None
    converted: Tensor = example_input.to(parameter.device, parameter.dtype)
    return converted


def _check_samples_apart(graph_module: fx.GraphModule, probe: Tensor) -> None:
    """A sample's output must not depend on the other samples of its batch."""
    with torch.no_grad():
        alone, together = graph_module(probe[:1]), graph_module(probe)[:1]
    tolerance = _APART * torch.finfo(probe.dtype).eps * together.abs().max()
    if bool(((alone - together).abs() > tolerance).any()):
        raise UnsupportedModelError(
            "A sample's output depends on the other samples of its batch.",
            node="output",
            hint="Look for a softmax, mean or norm over dimension 0.",
        )


def _shapes(graph_module: fx.GraphModule, example_input: Tensor) -> dict[str, Shape]:
    """Shape of each layer's output by its path, and of the input."""
    recorder = _ShapeRecorder(graph_module)
    with torch.no_grad():
        recorder.run(example_input)
    return recorder.shapes


class _ShapeRecorder(fx.Interpreter):
    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.shapes: dict[str, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "output":
            self.shapes[str(n.target)] = tuple(value.shape)
        return value


def _check_exact(layer: nn.Module, path: str) -> None:
    if isinstance(layer, NORMS) and layer.running_mean is None:
        raise UnsupportedModelError(
            f"{path!r} ({type(layer).__name__}) normalises with the statistics of each batch.",
            node=path,
            hint="Keep running statistics: track_running_stats=True.",
        )


def _logits_node(graph_module: fx.GraphModule) -> str:
    """What the output node gives, or what a softmax at the very end makes probabilities of."""
    (output,) = graph_module.graph.find_nodes(op="output")
    last = output.args[0]
    if last.op == "call_module" and isinstance(graph_module.get_submodule(last.target), HEADS):
        last = last.args[0]
    if last.op != "call_module":
        raise UnsupportedModelError(
            "The network's output is its input.", node="output", hint="Give a network with layers."
        )
    return str(last.target)


def _sliceable_layers(
    graph_module: fx.GraphModule, couplings: Couplings, shapes: dict[str, Shape]
) -> tuple[SliceableLayer, ...]:
    layers = []
    for node in graph_module.graph.nodes:
        if node.target in couplings.neurons and node.target not in couplings.gates and couplings.removable(node.target):
            neurons = couplings.neurons[node.target]
            branch = _branch(node, couplings)
            read_node = next(path for path in reversed(branch) if _moves_zero(graph_module.get_submodule(path)))
            labels, shape = couplings.labels[read_node], shapes[read_node]
            axis = next((dim for dim, size in enumerate(labels.shape, start=1) if size > 1), 1)
            spatial = math.prod(shape[1:]) // len(neurons)
            layers.append(SliceableLayer(node.target, len(neurons), branch, read_node, axis, spatial))
    return tuple(layers)


def _branch(producer: fx.Node, couplings: Couplings) -> tuple[str, ...]:
    """The producer, and the layers after it as long as they alone read it and keep its neurons in order."""
    branch = [producer]
    while len(branch[-1].users) == 1:
        (following,) = branch[-1].users
        if following.op != "call_module" or len(following.args) != 1 or following.target in couplings.neurons:
            break
        if not _in_blocks(couplings.labels[str(following.target)], couplings.neurons[str(producer.target)]):
            break
        branch.append(following)
    return tuple(str(node.target) for node in branch)


def _in_blocks(labels: Labels, neurons: Int64[Tensor, " neurons"]) -> bool:
    """Whether a value holds these neurons in order, each in a block of its own."""
    flat = labels.flatten()
    varying = sum(size > 1 for size in labels.shape)
    return (
        varying <= 1
        and len(flat) % len(neurons) == 0
        and torch.equal(flat, neurons.repeat_interleave(len(flat) // len(neurons)))
    )


def _moves_zero(layer: nn.Module) -> bool:
    """Whether a zero neuron can come out of the layer as something else."""
    return not isinstance(layer, (*CARRIERS, Reshape))


def _fingerprint(graph_module: fx.GraphModule) -> str:
    digest = hashlib.sha256()
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            layer = graph_module.get_submodule(node.target)
            sources = [source.target for source in node.args]
            digest.update(json.dumps([node.target, sources, describe_layer(layer)], sort_keys=True).encode())
            for name, tensor in sorted(layer.state_dict().items()):
                digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
