"""Functions that compute what a layer computes (`F.relu`, `a + b`, `x.view(n, -1)`, ...), as the layer."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 torch's own name for it
from torch import fx, nn

from neusemslice.calls import Call
from neusemslice.graph_layers import (
    Add,
    Affine,
    Concat,
    Mean,
    Multiply,
    Narrow,
    Permute,
    Prepend,
    Reshape,
    Scale,
    Select,
    Shift,
    Subtract,
)
from neusemslice.observing import BATCH

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
_MUST_BE_OFF = {
    "training": "Pass training=self.training, so that eval mode turns it off.",
    "return_indices": "The indices are a second value: leave return_indices out.",
    "dtype": "The result changes its type: leave dtype out.",
}


@dataclass(frozen=True)
class Lifted:
    """A layer and the values it takes. `path` is where the caller keeps the layer's parameter, if it has one."""

    layer: nn.Module
    inputs: tuple[fx.Node, ...]
    path: str | None = None


def lift(call: Call) -> Lifted | fx.Node:
    """The layer that computes what a call computes, or the value that it passes on unchanged.

    Raises:
        UnsupportedModelError: the function is no layer the engine knows, or is called in a way that no layer offers.
    """
    target = call.node.target
    if target in LIFTS:
        return _lift_simple(call, *LIFTS[target])
    if target in _HANDLERS:
        return _HANDLERS[target](call)
    if getattr(target, "__name__", "") == "stochastic_depth":
        return _lift_stochastic_depth(call)
    raise call.refused("is no layer that can be sliced")


def _lift_simple(call: Call, layer: type[nn.Module], names: str) -> Lifted:
    values = call.bind(f"input {names}")
    source = call.require_value(values.pop("input", None))
    if call.node.target is F.dropout or layer in (nn.Dropout1d, nn.Dropout2d):
        values.setdefault("training", True)
    if layer is nn.Flatten:
        values = {"start_dim": 0, "end_dim": -1} | values
    for name, remedy in _MUST_BE_OFF.items():
        if values.pop(name, None):
            raise call.refused(f"has {name} set", remedy)
    settings = {name: value for name, value in values.items() if name not in _NO_EFFECT}
    if any(value is BATCH or isinstance(value, fx.Node) for value in settings.values()):
        raise call.refused("has a setting that depends on its input", "Give the setting as a number.")
    return Lifted(layer(**settings), (source,))


def _lift_stochastic_depth(call: Call) -> fx.Node:
    values = call.bind("input p mode training")
    if values.get("training", True):
        raise call.refused("has training set", _MUST_BE_OFF["training"])
    return call.require_value(values["input"])


def _pass_on(call: Call) -> fx.Node:
    return call.require_value(call.node.args[0])


def _lift_sum(call: Call) -> Lifted:
    one, other = _operands(call)
    if _is_number(other):
        return Lifted(Affine(shift=float(other)), (call.require_value(one),))
    if _is_number(one):
        return Lifted(Affine(shift=float(one)), (call.require_value(other),))
    return _lift_pair(call, one, other, Add, Shift)


def _lift_difference(call: Call) -> Lifted:
    one, other = _operands(call)
    if _is_number(other):
        return Lifted(Affine(shift=-float(other)), (call.require_value(one),))
    if _is_number(one):
        return Lifted(Affine(factor=-1.0, shift=float(one)), (call.require_value(other),))
    return Lifted(Subtract(), (call.require_value(one), call.require_value(other)))


def _lift_product(call: Call) -> Lifted:
    one, other = _operands(call)
    if _is_number(other):
        return Lifted(Affine(factor=float(other)), (call.require_value(one),))
    if _is_number(one):
        return Lifted(Affine(factor=float(one)), (call.require_value(other),))
    return _lift_pair(call, one, other, Multiply, Scale)


def _lift_quotient(call: Call) -> Lifted:
    one, other = _operands(call)
    if not _is_number(other):
        raise call.refused("divides by a tensor", "Divide by a number, or multiply.")
    return Lifted(Affine(divisor=float(other)), (call.require_value(one),))


def _lift_negation(call: Call) -> Lifted:
    return Lifted(Affine(factor=-1.0), (call.require_value(call.node.args[0]),))


def _operands(call: Call) -> tuple[Any, Any]:
    values = call.bind("input other")
    if len(values) != 2 or values.keys() != {"input", "other"}:
        raise call.refused("has alpha, out or rounding_mode set")
    return values["input"], values["other"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lift_pair(call: Call, one: Any, other: Any, join: type[nn.Module], learned: type[nn.Module]) -> Lifted:
    """Two values, or a value and a parameter."""
    if call.is_value(one) and call.is_value(other):
        return Lifted(join(), (one, other))
    for value, parameter in ((one, other), (other, one)):
        tensor = call.learned(parameter)
        if tensor is not None and call.is_value(value):
            sample = call.shape(value)[1:]
            tensor = tensor[0] if tensor.ndim == len(sample) + 1 and len(tensor) == 1 else tensor
            if tensor.ndim <= len(sample) and torch.broadcast_shapes(tensor.shape, sample) == sample:
                shape = (*[1] * (len(sample) - tensor.ndim), *tensor.shape)
                layer = learned(shape).requires_grad_(requires_grad=False)
                layer.weight = nn.Parameter(tensor.reshape(shape).clone(), requires_grad=False)
                return Lifted(layer, (value,), str(parameter.target))
    raise call.refused("has an operand that is no branch, parameter or number")


def _lift_cat(call: Call) -> Lifted:
    values = call.bind("tensors dim")
    branches, dim = values["tensors"], values.get("dim", 0)
    token = call.learned(branches[0])
    if token is not None and len(branches) == 2 and dim == 1 and token.ndim == 3 and len(token) == 1:
        layer = Prepend(tuple(token.shape[1:]))
        layer.weight = nn.Parameter(token[0].clone(), requires_grad=False)
        attribute = branches[0]
        while attribute.op != "get_attr":
            attribute = attribute.args[0]
        return Lifted(layer, (call.require_value(branches[1]),), str(attribute.target))
    if dim % len(call.shape()) == 0:
        raise call.refused("joins the samples of batches", "Concatenate along another dimension than the first.")
    return Lifted(Concat(dim), tuple(call.require_value(branch) for branch in branches))


def _lift_mean(call: Call) -> Lifted:
    values = call.bind("input dim keepdim")
    source = call.require_value(values["input"])
    dims = values.get("dim")
    dims = (dims,) if isinstance(dims, int) else tuple(dims or ())
    if not dims or any(dim % len(call.shape(source)) == 0 for dim in dims):
        raise call.refused("takes the mean over the samples", "Name the dimensions, without the first.")
    return Lifted(Mean(dims, values.get("keepdim", False)), (source,))


def _lift_permute(call: Call) -> Lifted:
    source = call.require_value(call.node.args[0])
    rank = len(call.shape(source))
    return _permuted(call, source, [dim % rank for dim in call.rest()])


def _lift_transpose(call: Call) -> Lifted:
    source = call.require_value(call.node.args[0])
    dims = list(range(len(call.shape(source))))
    one, other = (dim % len(dims) for dim in call.rest())
    dims[one], dims[other] = dims[other], dims[one]
    return _permuted(call, source, dims)


def _permuted(call: Call, source: fx.Node, dims: list[int]) -> Lifted:
    if dims[0] != 0:
        raise call.refused("moves the samples away from the first dimension")
    return Lifted(Permute(tuple(dims)), (source,))


def _lift_reshape(call: Call) -> Lifted:
    """The result's shape decides, whichever way it was asked for."""
    source = call.require_value(call.node.args[0])
    shape = call.shape()
    if not call.is_value(call.node):
        given = tuple("batch" if size is BATCH else size for size in call.rest())
        raise call.refused(f"to {given} is no shape of the batch's samples", "Use torch.flatten(x, 1).")
    flat = len(shape) == 2 and len(call.shape(source)) > 2
    return Lifted(nn.Flatten() if flat else Reshape(shape[1:]), (source,))


def _lift_item(call: Call) -> Lifted | fx.Node:
    """A part of what chunk or split gives, the output of an attention, or one place of a dimension."""
    source, index = call.node.args
    assert isinstance(source, fx.Node)
    if source.op == "call_module" and index == 0:
        return source
    if source.target in _CHUNKS and isinstance(index, int):
        whole = call.require_value(source.args[0])
        dim = next(
            d for d, (part, size) in enumerate(zip(call.shape(), call.shape(whole), strict=True)) if part != size
        )
        sizes = call.sizes(source, dim)
        start = [0, *accumulate(sizes)][index % len(sizes)]
        return Lifted(Narrow(dim, start, sizes[index]), (whole,))
    places = index if isinstance(index, tuple) else (index,)
    chosen = [(dim, place) for dim, place in enumerate(places) if isinstance(place, int)]
    if len(chosen) != 1 or chosen[0][0] == 0 or any(p != slice(None) for p in places if not isinstance(p, int)):
        raise call.refused("takes more than one place of a dimension", "Use x[:, i], or torch.chunk.")
    return Lifted(Select(*chosen[0]), (call.require_value(source),))


def _lift_layer_norm(call: Call) -> Lifted:
    values = call.bind("input normalized_shape weight bias eps")
    weight, bias = call.learned(values.get("weight")), call.learned(values.get("bias"))
    layer = nn.LayerNorm(
        tuple(values["normalized_shape"]),
        eps=values.get("eps", 1e-5),
        elementwise_affine=weight is not None,
        bias=bias is not None,
    )
    layer.load_state_dict({k: v for k, v in (("weight", weight), ("bias", bias)) if v is not None}, assign=True)
    return Lifted(layer, (call.require_value(values["input"]),))


_CHUNKS = (torch.chunk, torch.split, "chunk", "split")
_HANDLERS: dict[Callable[..., Any] | str, Callable[[Call], Lifted | fx.Node]] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _lift_sum),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _lift_product),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), _lift_difference),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div", "div_"), _lift_quotient),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), _lift_negation),
    **dict.fromkeys((torch.cat, torch.concat), _lift_cat),
    **dict.fromkeys((torch.mean, "mean"), _lift_mean),
    **dict.fromkeys((torch.permute, "permute"), _lift_permute),
    **dict.fromkeys((torch.transpose, "transpose"), _lift_transpose),
    **dict.fromkeys((torch.reshape, "reshape", "view", "squeeze", "unsqueeze", "unflatten"), _lift_reshape),
    **dict.fromkeys((torch.squeeze, torch.unsqueeze, torch.unflatten), _lift_reshape),
    **dict.fromkeys(("contiguous", "clone", torch.clone), _pass_on),
    operator.getitem: _lift_item,
    F.layer_norm: _lift_layer_norm,
}
