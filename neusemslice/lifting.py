"""Functions that compute what a layer computes (`F.relu`, `a + b`, `x.view(n, -1)`, ...), as the layer."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 torch's own name for it
from torch import fx, nn

from neusemslice import arithmetic, functional, reshaping
from neusemslice.calls import Call, Lifted, is_setting

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
    torch.sigmoid_: (nn.Sigmoid, ""),
    "sigmoid": (nn.Sigmoid, ""),
    "sigmoid_": (nn.Sigmoid, ""),
    F.tanh: (nn.Tanh, ""),
    torch.tanh: (nn.Tanh, ""),
    torch.tanh_: (nn.Tanh, ""),
    "tanh": (nn.Tanh, ""),
    "tanh_": (nn.Tanh, ""),
    F.celu: (nn.CELU, "alpha inplace"),
    F.elu: (nn.ELU, "alpha inplace"),
    F.elu_: (nn.ELU, "alpha"),
    F.gelu: (nn.GELU, "approximate"),
    F.hardshrink: (nn.Hardshrink, "lambd"),
    F.hardsigmoid: (nn.Hardsigmoid, "inplace"),
    F.hardswish: (nn.Hardswish, "inplace"),
    F.hardtanh: (nn.Hardtanh, "min_val max_val inplace"),
    F.hardtanh_: (nn.Hardtanh, "min_val max_val"),
    F.leaky_relu: (nn.LeakyReLU, "negative_slope inplace"),
    F.leaky_relu_: (nn.LeakyReLU, "negative_slope"),
    F.logsigmoid: (nn.LogSigmoid, ""),
    F.mish: (nn.Mish, "inplace"),
    F.relu6: (nn.ReLU6, "inplace"),
    F.selu: (nn.SELU, "inplace"),
    torch.selu: (nn.SELU, ""),
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

_NO_EFFECT = frozenset({"inplace", "_stacklevel", "dtype"})
_MUST_BE_OFF = {
    "training": "Pass training=self.training, so that eval mode turns it off.",
    "return_indices": "The indices are a second value: leave return_indices out.",
}
_HANDLERS = {**arithmetic.HANDLERS, **reshaping.HANDLERS, **functional.HANDLERS}


def lift(call: Call) -> Lifted | fx.Node:
    """The layers that compute what a call computes, or the value that it passes on unchanged.

    Raises:
        UnsupportedModelError: the function is no layer the engine knows, or is called in a way that no layer offers.
    """
    target = call.node.target
    lifted: Lifted | fx.Node
    if target in LIFTS:
        lifted = _lift_simple(call, *LIFTS[target])
    elif target in _HANDLERS:
        lifted = _HANDLERS[target](call)
    elif getattr(target, "__name__", "") == "stochastic_depth":
        lifted = _lift_stochastic_depth(call)
    else:
        raise call.refused("is no layer that can be sliced")
    if not call.is_value(call.node):
        raise call.refused(
            f"gives shape {call.shape()}, where the samples of a batch are not the first dimension",
            "The first dimension has to be the batch, from the input to the output.",
        )
    return lifted


def _lift_simple(call: Call, layer: type[nn.Module], names: str) -> Lifted:
    values = call.bind(f"input {names}")
    source = call.require_value(values.pop("input", None))
    if layer in (nn.Dropout, nn.Dropout1d, nn.Dropout2d):
        values.setdefault("training", True)
    if layer is nn.Flatten:
        values = {"start_dim": 0, "end_dim": -1} | values
    if layer in (nn.Softmax, nn.LogSoftmax):
        values["dim"] = call.dim(_softmax_dim(values.get("dim"), len(call.shape(source))), source)
    for name, remedy in _MUST_BE_OFF.items():
        if values.pop(name, None):
            raise call.refused(f"has {name} set", remedy)
    if call.kind() != call.kind(source):
        raise call.refused("changes the type of its input", "Leave dtype out.")
    settings = {name: value for name, value in values.items() if name not in _NO_EFFECT}
    if not all(map(is_setting, settings.values())):
        raise call.refused("has a setting that depends on its input", "Give the setting as a number.")
    return Lifted(layer(**settings), (source,))


def _softmax_dim(dim: int | None, rank: int) -> int:
    """The dimension that torch takes where none is given."""
    return (0 if rank in (0, 1, 3) else 1) if dim is None else dim


def _lift_stochastic_depth(call: Call) -> fx.Node:
    values = call.bind("input p mode training")
    if values.get("training", True):
        raise call.refused("has training set", _MUST_BE_OFF["training"])
    return call.require_value(values["input"])
