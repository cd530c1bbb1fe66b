"""What each type of layer does to a neuron's value. The engine accepts exactly the types listed here."""

from torch import nn

from neusemslice.graph_layers import (
    JOINS,
    Affine,
    Attention,
    Divide,
    Mean,
    Narrow,
    Permute,
    Prepend,
    QueryKeyValue,
    Reshape,
    Scale,
    Scatter,
    Select,
    Shift,
    Sum,
)

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PRODUCERS: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, nn.Linear, QueryKeyValue)
"""Layers with neurons of their own: one per output channel or feature, or per attention head. A depthwise convolution
has none (see below)."""

NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""In eval mode an affine map of each neuron by itself. It moves zero, so a neuron is read after it."""

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
)
"""Elementwise. Some move zero (Sigmoid), so a neuron is read after them."""

MAX_POOLS: tuple[type[nn.Module], ...] = (nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
AVERAGE_POOLS: tuple[type[nn.Module], ...] = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
POOLS = (*MAX_POOLS, *AVERAGE_POOLS)
CARRIERS: tuple[type[nn.Module], ...] = (
    *POOLS,
    Mean,
    Sum,
    nn.Flatten,
    Permute,
    Select,
    Narrow,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Identity,
)
"""Layers that keep neurons apart and a zero neuron zero: they may stand between a neuron and its consumer."""

LEARNED: tuple[type[nn.Module], ...] = (Shift, Scale, Divide)
"""Elementwise with a tensor of the value's shape, which is cut with the value. As affine as `Affine`."""

MIXERS: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Softmax,
    nn.LogSoftmax,
    Reshape,
    Prepend,
)
"""Layers whose outputs depend on all of their inputs, or on where these stand: what they read has to stay whole."""

HEADS: tuple[type[nn.Module], ...] = (nn.Softmax, nn.LogSoftmax)
"""Left out at the very end, where they turn logits into probabilities: contributions are to the logits."""

SUPPORTED = frozenset(
    (*PRODUCERS, *NORMS, *ACTIVATIONS, *CARRIERS, *LEARNED, *JOINS, *MIXERS, Affine, Attention, Scatter)
)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a convolution filters each neuron by itself: it passes neurons on and has none of its own."""
    return isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and 1 < layer.groups == layer.in_channels


def is_producer(layer: nn.Module) -> bool:
    """Whether a layer has neurons of its own."""
    return isinstance(layer, PRODUCERS) and not is_depthwise(layer)
