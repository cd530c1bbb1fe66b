"""Functions that compute what a layer computes (`F.relu`, `x.view(n, -1)`, ...), as the layer."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 torch's own name for it
from torch import fx, nn

from neusemslice.errors import UnsupportedModelError

_MAX = "kernel_size stride padding dilation ceil_mode return_indices"
_AVERAGE = "kernel_size stride padding ceil_mode count_include_pad divisor_override"
_ADAPTIVE = "output_size return_indices"
_DROPOUT = "p training inplace"

LIFTS: dict[Callable[..., Any] | str, tuple[type[nn.Module], str]] = {
    F.relu: (nn.ReLU, "inplace"),
    torch.relu: (nn.ReLU, ""),
    torch.relu_: (nn.ReLU, ""),
    "relu": (nn.ReLU, ""),
    "relu_": (nn.ReLU, ""),
    F.sigmoid: (nn.Sigmoid, ""),
    torch.sigmoid: (nn.Sigmoid, ""),
    "sigmoid": (nn.Sigmoid, ""),
    F.tanh: (nn.Tanh, ""),
    torch.tanh: (nn.Tanh, ""),
    "tanh": (nn.Tanh, ""),
    F.celu: (nn.CELU, "alpha inplace"),
    F.elu: (nn.ELU, "alpha inplace"),
    F.gelu: (nn.GELU, "approximate"),
    F.hardshrink: (nn.Hardshrink, "lambd"),
    F.hardsigmoid: (nn.Hardsigmoid, "inplace"),
    F.hardswish: (nn.Hardswish, "inplace"),
    F.hardtanh: (nn.Hardtanh, "min_val max_val inplace"),
    F.leaky_relu: (nn.LeakyReLU, "negative_slope inplace"),
    F.logsigmoid: (nn.LogSigmoid, ""),
    F.mish: (nn.Mish, "inplace"),
    F.relu6: (nn.ReLU6, "inplace"),
    F.selu: (nn.SELU, "inplace"),
    F.silu: (nn.SiLU, "inplace"),
    F.softplus: (nn.Softplus, "beta threshold"),
    F.softshrink: (nn.Softshrink, "lambd"),
    F.softsign: (nn.Softsign, ""),
    F.tanhshrink: (nn.Tanhshrink, ""),
    F.max_pool1d: (nn.MaxPool1d, _MAX),
    F.max_pool2d: (nn.MaxPool2d, _MAX),
    torch.max_pool1d: (nn.MaxPool1d, _MAX),
    torch.max_pool2d: (nn.MaxPool2d, _MAX),
    F.avg_pool1d: (nn.AvgPool1d, _AVERAGE),
    F.avg_pool2d: (nn.AvgPool2d, _AVERAGE),
    F.adaptive_max_pool1d: (nn.AdaptiveMaxPool1d, _ADAPTIVE),
    F.adaptive_max_pool2d: (nn.AdaptiveMaxPool2d, _ADAPTIVE),
    F.adaptive_avg_pool1d: (nn.AdaptiveAvgPool1d, _ADAPTIVE),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, _ADAPTIVE),
    F.dropout: (nn.Dropout, _DROPOUT),
    F.dropout1d: (nn.Dropout1d, _DROPOUT),
    F.dropout2d: (nn.Dropout2d, _DROPOUT),
    F.softmax: (nn.Softmax, "dim _stacklevel dtype"),
    torch.softmax: (nn.Softmax, "dim dtype"),
    "softmax": (nn.Softmax, "dim dtype"),
    F.log_softmax: (nn.LogSoftmax, "dim _stacklevel dtype"),
    torch.log_softmax: (nn.LogSoftmax, "dim dtype"),
    "log_softmax": (nn.LogSoftmax, "dim dtype"),
    torch.flatten: (nn.Flatten, "start_dim end_dim"),
    "flatten": (nn.Flatten, "start_dim end_dim"),
}
"""Function or method name -> layer, and the function's parameters after the input, in order."""

_NO_EFFECT = frozenset({"inplace", "_stacklevel"})
HINT = "Use convolutions, linear layers, batch norms, elementwise activations, pooling, flatten and dropout."
_MUST_BE_OFF = {
    "training": "Pass training=self.training, so that eval mode turns it off.",
    "return_indices": "The indices are a second value: leave return_indices out.",
    "dtype": "The result changes its type: leave dtype out.",
}


def describe(node: fx.Node) -> str:
    """The node's operation in the words of the network's author."""
    return node.name.rstrip("_0123456789") if node.op == "call_function" else str(node.target).rstrip("_")


def is_shape_query(node: fx.Node) -> bool:
    """Whether a node only asks for a tensor's size: `x.size(0)`, `x.shape[0]`."""
    if node.op == "call_method":
        return bool(node.target == "size")
    if node.op == "call_function" and node.target is getattr:
        return bool(node.args[1] == "shape")
    return node.target is operator.getitem and isinstance(node.args[0], fx.Node) and is_shape_query(node.args[0])


def unknown_operation(node: fx.Node, place: str) -> UnsupportedModelError:
    """The error for a function that no supported layer computes."""
    return UnsupportedModelError(
        f"{describe(node)} at {place!r} is no layer that can be sliced.", node=place, hint=HINT
    )


def lift(node: fx.Node, place: str, input_shape: tuple[int, ...]) -> nn.Module:
    """The layer that computes what a function or method node computes on an input of that shape.

    Raises:
        UnsupportedModelError: the function is no layer the engine knows, or is called in a way that no layer offers.
    """
    if node.target in ("view", "reshape"):
        return _lift_view(node, place, input_shape)
    if node.target not in LIFTS:
        raise unknown_operation(node, place)
    layer, names = LIFTS[node.target]
    values = dict(zip(names.split(), node.args[1:], strict=False)) | node.kwargs
    if node.target is F.dropout or layer in (nn.Dropout1d, nn.Dropout2d):
        values.setdefault("training", True)
    if layer is nn.Flatten:
        values = {"start_dim": 0, "end_dim": -1} | values
    for name, remedy in _MUST_BE_OFF.items():
        if values.pop(name, None):
            raise UnsupportedModelError(f"{describe(node)} at {place!r} has {name} set.", node=place, hint=remedy)
    settings = {name: value for name, value in values.items() if name not in _NO_EFFECT}
    if any(isinstance(value, fx.Node) for value in settings.values()):
        raise UnsupportedModelError(
            f"{describe(node)} at {place!r} has a setting that depends on its input.",
            node=place,
            hint="Give the setting as a number.",
        )
    return layer(**settings)


def _lift_view(node: fx.Node, place: str, input_shape: tuple[int, ...]) -> nn.Flatten:
    """`view(n, -1)`, in its usual spellings, is a flatten."""
    given = node.args[1:]
    target = given[0] if len(given) == 1 and isinstance(given[0], tuple | list) else given
    features = torch.Size(input_shape[1:]).numel()
    batch_first = len(target) == 2 and (target[0] == -1 or _is_batch_size(target[0]))
    if batch_first and target[1] in (-1, features) and tuple(target) != (-1, -1):
        return nn.Flatten()
    raise UnsupportedModelError(
        f"{describe(node)} at {place!r} to {tuple(target)} is no flatten of the batch's samples.",
        node=place,
        hint="Use torch.flatten(x, 1).",
    )


def _is_batch_size(value: Any) -> bool:
    return isinstance(value, fx.Node) and is_shape_query(value) and value.args[1:] == (0,)
