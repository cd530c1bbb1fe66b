"""What each type of layer does to a neuron's value. The engine accepts exactly the types listed here."""

from torch import nn

PRODUCERS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers with neurons of their own: one per output channel or feature."""

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
CARRIERS: tuple[type[nn.Module], ...] = (*POOLS, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity)
"""Layers that keep neurons apart and a zero neuron zero: they may stand between a neuron and its consumer."""

HEADS: tuple[type[nn.Module], ...] = (nn.Softmax, nn.LogSoftmax)
"""Accepted at the very end only, where they are left out: contributions are to the logits."""

SUPPORTED = frozenset((*PRODUCERS, *NORMS, *ACTIVATIONS, *CARRIERS, *HEADS))
