"""Sums, products and concatenations in a traced graph: of branches, of a branch and a number or an own tensor."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from neusemslice.calls import Call, Lifted, is_number
from neusemslice.graph_layers import Add, Affine, Concat, Divide, Multiply, Prepend, Scale, Shift, Subtract
from neusemslice.observing import Own


def _lift_sum(call: Call) -> Lifted:
    one, other = _operands(call)
    if is_number(other):
        return Lifted(Affine(shift=float(other)), (call.require_value(one),))
    if is_number(one):
        return Lifted(Affine(shift=float(one)), (call.require_value(other),))
    return _lift_pair(call, one, other, Add, Shift)


def _lift_difference(call: Call) -> Lifted:
    one, other = _operands(call)
    if is_number(other):
        return Lifted(Affine(shift=-float(other)), (call.require_value(one),))
    if is_number(one):
        return Lifted(Affine(factor=-1.0, shift=float(one)), (call.require_value(other),))
    if subtracted := call.own(other):
        return Lifted(_own_layer(call, Shift, one, subtracted, torch.neg), (call.require_value(one),))
    if minuend := call.own(one):
        shift = _own_layer(call, Shift, other, minuend)
        return Lifted(Affine(factor=-1.0), (call.require_value(other),), then=(shift,), path=_path(minuend))
    return Lifted(Subtract(), (call.require_value(one), call.require_value(other)))


def _lift_product(call: Call) -> Lifted:
    one, other = _operands(call)
    if is_number(other):
        return Lifted(Affine(factor=float(other)), (call.require_value(one),))
    if is_number(one):
        return Lifted(Affine(factor=float(one)), (call.require_value(other),))
    return _lift_pair(call, one, other, Multiply, Scale)


def _lift_quotient(call: Call) -> Lifted:
    one, other = _operands(call)
    if is_number(other):
        return Lifted(Affine(divisor=float(other)), (call.require_value(one),))
    if divisor := call.own(other):
        return Lifted(_own_layer(call, Divide, one, divisor), (call.require_value(one),), path=_path(divisor))
    raise call.refused(
        "divides by a tensor that depends on the input", "Divide by a number, parameter or buffer, or multiply."
    )


def _lift_negation(call: Call) -> Lifted:
    return Lifted(Affine(factor=-1.0), (call.first(),))


def _operands(call: Call) -> tuple[Any, Any]:
    values = call.bind("input other alpha rounding_mode")
    if values.get("alpha", 1) != 1 or values.get("rounding_mode") is not None or "other" not in values:
        raise call.refused("has alpha or rounding_mode set", "Multiply the operand itself.")
    return values["input"], values["other"]


def _lift_pair(call: Call, one: Any, other: Any, join: type[nn.Module], layer: type[nn.Module]) -> Lifted:
    """Two values, or a value and an own tensor."""
    if call.is_value(one) and call.is_value(other):
        return Lifted(join(), (one, other))
    for value, operand in ((one, other), (other, one)):
        own = call.own(operand)
        if own is not None:
            return Lifted(_own_layer(call, layer, value, own), (call.require_value(value),), path=_path(own))
    raise call.refused("has an operand that is no branch, parameter, buffer or number")


def _own_layer(
    call: Call, layer: type[nn.Module], value: Any, own: Own, change: Callable[[Tensor], Tensor] = torch.clone
) -> nn.Module:
    """A layer that holds an own tensor as a value's samples need it."""
    value = call.require_value(value)
    sample = call.shape(value)[1:]
    tensor = _of_type(call, value, own.tensor)
    if tensor.ndim == len(sample) + 1 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.ndim > len(sample) or torch.broadcast_shapes(tensor.shape, sample) != sample:
        raise call.refused(
            f"joins samples of shape {sample} with an own tensor of shape {tuple(own.tensor.shape)}",
            "Give it the shape of a sample, or one that is broadcast to it.",
        )
    return _holding(layer, tensor.reshape([1] * (len(sample) - tensor.ndim) + list(tensor.shape)), own, change)


def _holding(
    layer: type[nn.Module], tensor: Tensor, own: Own, change: Callable[[Tensor], Tensor] = torch.clone
) -> nn.Module:
    made = layer(tuple(tensor.shape), learned=own.learned).requires_grad_(requires_grad=False)
    made.load_state_dict({"weight": change(tensor)}, assign=True)
    return made


def _of_type(call: Call, value: fx.Node, tensor: Tensor) -> Tensor:
    """The tensor, if it leaves a value's type of number as it is, as a single floating-point number always does."""
    wanted = call.kind(value)[0]
    if tensor.dtype != wanted and not (tensor.ndim == 0 and tensor.is_floating_point()):
        raise call.refused(
            f"joins numbers of type {wanted} with an own tensor of type {tensor.dtype}",
            "Keep the network's own tensors in the type of its weights.",
        )
    return tensor.to(wanted)


def _path(own: Own) -> str | None:
    return own.origins[0] if len(own.origins) == 1 else None


def _lift_concatenation(call: Call) -> Lifted:
    values = call.bind("tensors dim")
    branches = values["tensors"]
    if not isinstance(branches, tuple | list):
        raise call.refused("joins a list that another function gives", "Name its tensors: torch.cat([a, b], 1).")
    token = call.own(branches[0])
    reference = next((branch for branch in branches if call.is_value(branch)), None)
    dim = call.dim(values.get("dim", 0), call.require_value(reference))
    if token is not None and len(branches) == 2 and dim == 1 and token.tensor.ndim == 3 and len(token.tensor) == 1:
        value = call.require_value(branches[1])
        return Lifted(_holding(Prepend, _of_type(call, value, token.tensor)[0], token), (value,), path=_path(token))
    if any(call.own(branch) for branch in branches):
        raise call.refused(
            "joins the network's own tensor with its samples", "Only tokens in front of [batch, tokens, features] are."
        )
    return Lifted(Concat(dim), tuple(call.require_value(branch) for branch in branches))


def _lift_clamp(call: Call) -> Lifted:
    """Between two numbers; where one is missing, the largest number stands in."""
    values = call.bind("input min max")
    source = call.require_value(values.get("input"))
    largest = torch.finfo(call.kind(source)[0]).max
    low, high = (
        bound if (bound := values.get(name)) is not None else end for name, end in (("min", -largest), ("max", largest))
    )
    if not is_number(low) or not is_number(high) or low >= high:
        raise call.refused("has bounds that are no two numbers in order", "Give min and max as numbers.")
    if (low, high) == (0, largest):
        return Lifted(nn.ReLU(), (source,))
    return Lifted(nn.Hardtanh(float(low), float(high)), (source,))


HANDLERS: dict[Callable[..., Any] | str, Callable[[Call], Lifted | fx.Node]] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _lift_sum),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, torch.multiply), _lift_product),
    **dict.fromkeys(("mul", "mul_", "multiply", "multiply_"), _lift_product),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, torch.subtract), _lift_difference),
    **dict.fromkeys(("sub", "sub_", "subtract", "subtract_"), _lift_difference),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide), _lift_quotient),
    **dict.fromkeys(("div", "div_", "divide", "divide_", "true_divide"), _lift_quotient),
    **dict.fromkeys((operator.neg, torch.neg, torch.negative, "neg", "neg_", "negative"), _lift_negation),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _lift_concatenation),
    **dict.fromkeys((torch.clamp, torch.clip, "clamp", "clamp_", "clip", "clip_"), _lift_clamp),
}
