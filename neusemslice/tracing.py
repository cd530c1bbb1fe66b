"""Where the neurons of a network are: its sliceable layers, and the place at which each one's value is read."""

import copy
import hashlib
import json
import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from neusemslice.errors import UnsupportedModelError
from neusemslice.layers import describe_layer
from neusemslice.lowering import lower
from neusemslice.roles import ACTIVATIONS, CARRIERS, HEADS, NORMS, POOLS, PRODUCERS


@dataclass(frozen=True)
class SliceableLayer:
    """A layer whose neurons can be kept or removed.

    Attributes:
        name: path of the producer, the convolution or linear layer.
        neurons: its output channels or features.
        read_node: path of the layer whose output is the neurons' value: the last norm or activation before the next
            producer, or the producer itself. Only there is setting a neuron to zero the same as removing it.
        spatial: positions per neuron in that value, which is [batch, neurons * spatial] up to reshaping.
    """

    name: str
    neurons: int
    read_node: str
    spatial: int

    def per_neuron(self, value: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch neurons positions"]:
        """The read node's output with one row per neuron (also when a flatten lies between)."""
        return value.reshape(len(value), self.neurons, self.spatial)


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
    """

    graph_module: fx.GraphModule
    input_shape: tuple[int, ...]
    categories: int
    sliceable_layers: tuple[SliceableLayer, ...]
    logits_node: str
    fingerprint: str

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
        return replace(self, graph_module=copy.deepcopy(self.graph_module).to(device))

    def layer(self, name: str) -> SliceableLayer:
        """The sliceable layer of that name.

        Raises:
            KeyError: there is none.
        """
        return {layer.name: layer for layer in self.sliceable_layers}[name]


def trace(network: nn.Module, example_input: Float[Tensor, "batch ..."]) -> SliceableModel:
    """The network in the form that everything else works on; `network` itself is left as it is, its hooks are left out.

    Supported are networks that are one sequence of convolutions (1d to 3d, not grouped), linear layers, batch norms,
    elementwise activations, pooling, flatten, dropout and identity, written as layers or as functions.

    Args:
        network: any module; its parameters are copied.
        example_input: [batch, *input shape], any values that give finite outputs; moved to the network's device.

    Raises:
        UnsupportedModelError: naming the node that cannot be sliced exactly, and why.
    """
    parameter = next(network.parameters(), None)
    if parameter is None:
        raise UnsupportedModelError("The network has no parameters.", node="input", hint="Give a trained network.")
    example_input = example_input.to(parameter.device, parameter.dtype)
    graph_module = lower(network, example_input)
    shapes = _output_shapes(graph_module, example_input)
    chain = [str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"]
    sources = dict(zip(chain, [tuple(example_input.shape), *shapes.values()], strict=False))
    for path in chain:
        _check_exact(graph_module.get_submodule(path), path, sources[path], shapes[path])
    logits_node = _logits_node(graph_module, chain)
    if len(shapes[logits_node]) != 2 or shapes[logits_node][1] < 2:
        raise UnsupportedModelError(
            f"The output has shape {shapes[logits_node]}, not [batch, categories].",
            node=logits_node,
            hint="The network has to give one logit for each of two or more categories.",
        )
    layers = _sliceable_layers(graph_module, chain, shapes)
    if not layers:
        raise UnsupportedModelError(
            "The network has no layer to slice: its only producer is the classifier.",
            node=logits_node,
            hint="At least one hidden convolution or linear layer is needed.",
        )
    return SliceableModel(
        graph_module=graph_module,
        input_shape=tuple(example_input.shape[1:]),
        categories=shapes[logits_node][1],
        sliceable_layers=layers,
        logits_node=logits_node,
        fingerprint=_fingerprint(graph_module),
    )


def _output_shapes(graph_module: fx.GraphModule, example_input: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of each layer's output, in forward order."""
    shapes: dict[str, tuple[int, ...]] = {}
    value = example_input
    with torch.no_grad():
        for node in graph_module.graph.nodes:
            if node.op == "call_module":
                value = graph_module.get_submodule(node.target)(value)
                shapes[node.target] = tuple(value.shape)
    return shapes


def _check_exact(layer: nn.Module, path: str, source: tuple[int, ...], result: tuple[int, ...]) -> None:
    """Neurons stay apart along dimension 1 all the way: otherwise zeroing one would not be removing it."""
    reason = ""
    if getattr(layer, "groups", 1) != 1:
        reason = f"is a grouped convolution (groups={layer.groups})"
    elif isinstance(layer, NORMS) and layer.running_mean is None:
        reason = "normalises with the statistics of each batch"
    elif isinstance(layer, nn.Linear) and len(source) != 2:
        reason = f"is applied to the last dimension of a {len(source)}-dimensional value"
    elif isinstance(layer, POOLS) and len(source) != (3 if type(layer).__name__.endswith("1d") else 4):
        reason = f"pools over the neurons of a {len(source)}-dimensional value"
    elif isinstance(layer, nn.Flatten) and (result[0] != source[0] or len(result) < 2):
        reason = "flattens the samples of a batch into one"
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and len(source) != len(layer.kernel_size) + 2:
        reason = "takes the batch for one sample's channels"
    if reason:
        raise UnsupportedModelError(
            f"{path!r} ({type(layer).__name__}) {reason}.", node=path, hint="Neurons have to stay apart in dimension 1."
        )


def _logits_node(graph_module: fx.GraphModule, chain: list[str]) -> str:
    heads = [isinstance(graph_module.get_submodule(path), HEADS) for path in chain]
    if not any(heads):
        return chain[-1]
    first = heads.index(True)
    if first != len(chain) - 1 or first == 0:
        path = chain[first]
        raise UnsupportedModelError(
            f"{path!r} ({type(graph_module.get_submodule(path)).__name__}) mixes neurons inside the network.",
            node=path,
            hint="A softmax is accepted as the very last layer only.",
        )
    return chain[-2]


def _sliceable_layers(
    graph_module: fx.GraphModule, chain: list[str], shapes: dict[str, tuple[int, ...]]
) -> tuple[SliceableLayer, ...]:
    layers = []
    producers = [place for place, path in enumerate(chain) if isinstance(graph_module.get_submodule(path), PRODUCERS)]
    for place, following in pairwise(producers):
        between = chain[place:following]
        read_node = next(path for path in reversed(between) if _moves_zero(graph_module.get_submodule(path)))
        neurons = shapes[chain[place]][1]
        spatial = math.prod(shapes[read_node][1:]) // neurons
        layers.append(SliceableLayer(chain[place], neurons, read_node, spatial))
    return tuple(layers)


def _moves_zero(layer: nn.Module) -> bool:
    """Whether a zero neuron can come out of the layer as something else."""
    assert isinstance(layer, (*PRODUCERS, *NORMS, *ACTIVATIONS, *CARRIERS))  # _lower and _logits_node refuse the rest
    return not isinstance(layer, CARRIERS)


def _fingerprint(graph_module: fx.GraphModule) -> str:
    digest = hashlib.sha256()
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            layer = graph_module.get_submodule(node.target)
            source = node.args[0].target
            digest.update(json.dumps([node.target, source, describe_layer(layer)], sort_keys=True).encode())
            for name, tensor in sorted(layer.state_dict().items()):
                digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
