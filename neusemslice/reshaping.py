"""Functions in a traced graph that move, pick or reduce places of each sample, as layers."""

import operator
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import fx, nn

from neusemslice.calls import Call, Lifted, is_setting
from neusemslice.graph_layers import Mean, Narrow, Permute, Reshape, Select, Sum
from neusemslice.observing import BATCH

_SPLITS = (torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split")
_UNBINDS = (torch.unbind, "unbind")
_MAXIMA = (torch.max, "max")
_BROADCASTING = frozenset(
    (operator.add, operator.sub, operator.mul, torch.add, torch.sub, torch.mul, "add", "sub", "mul")
)


def _in_order(first: fx.Node, layers: Sequence[nn.Module]) -> Lifted | fx.Node:
    """Layers one after the other; none is the value itself."""
    return Lifted(layers[0], (first,), then=tuple(layers[1:])) if layers else first


def _lift_permute(call: Call) -> Lifted | fx.Node:
    source = call.first()
    rank = len(call.shape(source))
    return _permuted(call, source, [dim % rank for dim in call.rest()])


def _lift_transpose(call: Call) -> Lifted | fx.Node:
    source = call.first()
    dims = list(range(len(call.shape(source))))
    one, other = (dim % len(dims) for dim in call.rest())
    dims[one], dims[other] = dims[other], dims[one]
    return _permuted(call, source, dims)


def _lift_movedim(call: Call) -> Lifted | fx.Node:
    source = call.first()
    rank = len(call.shape(source))
    moved, places = ([d % rank for d in (dim if isinstance(dim, tuple | list) else (dim,))] for dim in call.rest())
    rest = iter(dim for dim in range(rank) if dim not in moved)
    dims = [moved[places.index(place)] if place in places else next(rest) for place in range(rank)]
    return _permuted(call, source, dims)


def _permuted(call: Call, source: fx.Node, dims: list[int]) -> Lifted | fx.Node:
    if dims[0] != 0:
        raise call.refused("moves the samples away from the first dimension", "Permute the other dimensions alone.")
    return _in_order(source, [] if dims == sorted(dims) else [Permute(tuple(dims))])


def _lift_reshape(call: Call) -> Lifted:
    """The result's shape decides, whichever way it was asked for."""
    source = call.first()
    shape = call.shape()
    if not call.is_value(call.node):
        given = tuple("batch" if size is BATCH else size for size in call.rest())
        raise call.refused(f"to {given} is no shape of the batch's samples", "Use torch.flatten(x, 1).")
    flat = len(shape) == 2 and len(call.shape(source)) > 2
    return Lifted(nn.Flatten() if flat else Reshape(shape[1:]), (source,))


def _lift_expand(call: Call) -> fx.Node:
    """A value that what uses it would repeat by itself."""
    source = call.first()
    shape = call.shape()
    for user in call.node.users:
        others = [arg for arg in user.args if arg is not call.node]
        repeated = user.target in _BROADCASTING and len(others) == 1 and _has_shape(call, others[0], shape)
        if call.shape(source) != shape and (len(call.shape(source)) != len(shape) or not repeated):
            raise call.refused("repeats a value", "Leave it out before a sum or product, which repeats by itself.")
    return source


def _has_shape(call: Call, value: Any, shape: tuple[int, ...]) -> bool:
    return call.is_value(value) and call.shape(value) == shape and value.target not in ("expand", "expand_as")


def _lift_index(call: Call) -> Lifted | fx.Node:
    """A part of a list, the output of an attention, or places of a tensor."""
    source, index = call.node.args
    assert isinstance(source, fx.Node)
    if call.calls_layer(source, nn.MultiheadAttention) and index == 0:
        return source
    if call.parts(source) is not None or not call.is_value(source):
        return _lift_part(call, source, index)
    shape = call.shape(source)
    (places,) = call.rest() if not isinstance(index, tuple | list) else (tuple(call.rest()),)
    places = places if isinstance(places, tuple) else (places,)
    named = sum(place is not None and place is not ... for place in places)
    if ... not in places:
        places = (*places, ...)
    at = places.index(...)
    places = (*places[:at], *[slice(None)] * (len(shape) - named), *places[at + 1 :])
    layers: list[nn.Module] = []
    kept = [place for place in places if place is not None]
    if kept[0] != slice(None) or not call.is_value(call.node):
        raise call.refused("takes some samples of a batch", "Leave the first dimension whole: x[:, i].")
    for dim, place in reversed(list(enumerate(kept))):
        layers += _picked(call, dim, place, shape[dim])
    if None in places:
        layers.append(Reshape(call.shape()[1:]))
    return _in_order(source, layers)


def _picked(call: Call, dim: int, place: Any, size: int) -> list[nn.Module]:
    """What takes one place of a dimension, or a range of them."""
    if isinstance(place, int) and not isinstance(place, bool):
        return [Select(dim, place % size)]
    if not isinstance(place, slice) or not is_setting((place.start, place.stop, place.step)):
        raise call.refused(
            "takes places that are no number and no range",
            "Supported are numbers, ranges, None and `...`: x[:, 0], x[:, 1:], x[..., ::2].",
        )
    places = range(*place.indices(size))
    if not places:
        raise call.refused("takes no place of a dimension", "Let the range hold at least one.")
    return [] if len(places) == size else [Narrow(dim, places.start, len(places), places.step)]


def _lift_part(call: Call, source: fx.Node, index: Any) -> Lifted | fx.Node:
    """One tensor of those that a function gives."""
    parts = call.parts(source)
    if parts is not None and isinstance(index, int) and source.op != "call_module":
        whole = source.args[0] if source.args else source.kwargs.get("input")
        if source.target in _MAXIMA and index == 0:
            return _pooled(call, call.require_value(whole), _argument(source, 1, "dim"))
        if source.target in (*_SPLITS, *_UNBINDS) and isinstance(whole, fx.Node):
            at = 1 if source.target in _UNBINDS else 2
            dim = call.dim(_argument(source, at, "dim"), call.require_value(whole))
            if source.target in _UNBINDS:
                return Lifted(Select(dim, index % len(parts)), (whole,))
            sizes = [shape[dim] for shape in parts]
            start = [0, *accumulate(sizes)][index % len(sizes)]
            return _in_order(whole, [] if len(sizes) == 1 else [Narrow(dim, start, sizes[index])])
    raise call.refused(
        f"takes a part of what {source.target if source.op != 'call_function' else source.name!r} gives",
        "Supported are the parts of chunk, split and unbind, max(dim)[0], and an attention's output.",
    )


def _argument(node: fx.Node, place: int, name: str) -> Any:
    """A dimension that a function was called with; the first if none is given."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, 0)


def _lift_values(call: Call) -> Lifted | fx.Node:
    """`x.max(dim).values`."""
    source, name = call.node.args
    if name != "values" or not isinstance(source, fx.Node):
        raise call.refused(f"reads {name!r} of a tensor", "Use the tensor itself.")
    return _lift_part(call, source, 0)


def _lift_narrow(call: Call) -> Lifted:
    values = call.bind("input dim start length")
    source = call.require_value(values["input"])
    dim = call.dim(values["dim"], source)
    if not is_setting((values["start"], values["length"])):
        raise call.refused("has a setting that depends on its input", "Give start and length as numbers.")
    return Lifted(Narrow(dim, values["start"] % call.shape(source)[dim], values["length"]), (source,))


def _lift_select(call: Call) -> Lifted | fx.Node:
    values = call.bind("input dim index")
    source = call.require_value(values["input"])
    dim = call.dim(values["dim"], source)
    return _in_order(source, _picked(call, dim, values["index"], call.shape(source)[dim]))


def _lift_mean(call: Call) -> Lifted:
    return _reduced(call, Mean)


def _lift_total(call: Call) -> Lifted:
    return _reduced(call, Sum)


def _reduced(call: Call, layer: type[Mean]) -> Lifted:
    values = call.bind("input dim keepdim")
    source = call.require_value(values.get("input"))
    return Lifted(layer(_dims(call, source, values.get("dim")), values.get("keepdim", False)), (source,))


def _dims(call: Call, source: fx.Node, given: Any) -> tuple[int, ...]:
    dims = (given,) if isinstance(given, int) else tuple(given or ())
    if not dims or not is_setting(dims) or any(dim % len(call.shape(source)) == 0 for dim in dims):
        raise call.refused("reduces the samples of a batch to one", "Name the dimensions, without the first.")
    return dims


def _lift_amax(call: Call) -> Lifted | fx.Node:
    values = call.bind("input dim keepdim")
    return _pooled(call, call.require_value(values.get("input")), values.get("dim"))


def _pooled(call: Call, source: fx.Node, given: Any) -> Lifted | fx.Node:
    """The largest over positions: over both dimensions of an image, or one of a sequence."""
    rank = len(call.shape(source))
    dims = sorted(dim % rank for dim in _dims(call, source, given))
    layers: list[nn.Module]
    if rank == 4 and dims == [2, 3]:
        layers = [nn.AdaptiveMaxPool2d(1)]
    elif rank == 3 and dims == [2]:
        layers = [nn.AdaptiveMaxPool1d(1)]
    elif rank == 3 and dims == [1]:
        layers = [Permute((0, 2, 1)), nn.AdaptiveMaxPool1d(1)]
    else:
        raise call.refused(
            "takes the largest along these dimensions", "Supported are (2, 3) of images and one of sequences."
        )
    shape = call.shape()
    if len(shape) == 2:
        layers.append(nn.Flatten())
    elif dims == [1]:
        layers.append(Permute((0, 2, 1)))
    return _in_order(source, layers)


def _lift_unchanged(call: Call) -> fx.Node:
    """What keeps the numbers, their type and their device."""
    source = call.first()
    if call.kind() != call.kind(source):
        before, after = (" on ".join(map(str, kind)) for kind in (call.kind(source), call.kind()))
        raise call.refused(f"turns {before} into {after}", "Keep one type of number and one device throughout.")
    return source


_CASTS = ("float", "double", "half", "bfloat16", "to", "type_as", "type", "cpu", "cuda")
HANDLERS: dict[Callable[..., Any] | str, Callable[[Call], Lifted | fx.Node]] = {
    **dict.fromkeys((torch.permute, "permute"), _lift_permute),
    **dict.fromkeys((torch.transpose, "transpose", torch.swapaxes, "swapaxes"), _lift_transpose),
    **dict.fromkeys((torch.swapdims, "swapdims"), _lift_transpose),
    **dict.fromkeys((torch.movedim, "movedim", torch.moveaxis, "moveaxis"), _lift_movedim),
    **dict.fromkeys((torch.reshape, "reshape", "view", "squeeze", "unsqueeze", "unflatten"), _lift_reshape),
    **dict.fromkeys((torch.squeeze, torch.unsqueeze, torch.unflatten, "reshape_as", "view_as"), _lift_reshape),
    **dict.fromkeys(("expand", "expand_as"), _lift_expand),
    **dict.fromkeys((torch.narrow, "narrow"), _lift_narrow),
    **dict.fromkeys((torch.select, "select"), _lift_select),
    **dict.fromkeys((torch.mean, "mean"), _lift_mean),
    **dict.fromkeys((torch.sum, "sum"), _lift_total),
    **dict.fromkeys((torch.amax, "amax"), _lift_amax),
    **dict.fromkeys(("contiguous", "clone", torch.clone, "detach", torch.detach, *_CASTS), _lift_unchanged),
    operator.getitem: _lift_index,
    getattr: _lift_values,
}
