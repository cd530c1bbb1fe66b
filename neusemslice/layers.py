"""A layer from its description, and back.

A description is plain JSON, `{"type": "Conv2d", "kwargs": {"in_channels": 3, ...}}`. Nothing outside the closed table
of `layer_types` can be built: the type is looked up, and torch's constructor sees only checked values.
"""

import inspect
from typing import Any

import torch
from torch import nn

from neusemslice.errors import ArchitectureError
from neusemslice.layer_types import FLAG, LAYER_KEYWORDS, LAYER_TYPES, Keyword, check_keywords, show, suggest

_REQUIRED = inspect.Parameter.empty
_UNDESCRIBED = {"inplace", "device", "dtype", "args", "kwargs", "min_value", "max_value"}
"""Constructor arguments that a description leaves out: they change no value, or are old names of another argument."""


def build_layer(description: Any, where: str) -> nn.Module:
    """The layer a description names, its parameters on the `meta` device (they come from a weights file).

    Args:
        description: `{"type": name in LAYER_TYPES, "kwargs": {...}}`; `kwargs` may be absent.
        where: the description's place in the whole, for messages, such as "kwargs.layers[3]".

    Raises:
        ArchitectureError: the type or a keyword is unknown, a required keyword is missing, or a value is refused.
    """
    if not isinstance(description, dict):
        raise ArchitectureError(
            f"{where} is {show(description)}.", where=where, hint='Give {"type": ..., "kwargs": {}}.'
        )
    for name in description:
        if name not in ("type", "kwargs"):
            raise ArchitectureError(
                f"{where} has an unknown field {show(name)}.", where=where, hint="Use type and kwargs."
            )
    kind = description.get("type")
    if not isinstance(kind, str) or kind not in LAYER_TYPES:
        raise ArchitectureError(
            f"{where}.type is {show(kind)}, which is no known layer.",
            where=f"{where}.type",
            hint=suggest(str(kind), sorted(LAYER_TYPES)),
        )
    values = check_keywords(description.get("kwargs", {}), LAYER_KEYWORDS[kind], f"{where}.kwargs")
    missing = [name for name, default in _defaults(kind).items() if default is _REQUIRED and name not in values]
    if missing:
        raise ArchitectureError(
            f"{where} ({kind}) lacks {', '.join(missing)}.", where=f"{where}.kwargs", hint="Add it to kwargs."
        )
    try:
        with torch.device("meta"):
            return LAYER_TYPES[kind](**values)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ArchitectureError(
            f"{where} ({kind}) is refused by torch: {error}.", where=where, hint="Make its keywords agree."
        ) from error


def describe_layer(module: nn.Module, listed: type[nn.Module] | None = None) -> dict[str, Any]:
    """The inverse of `build_layer`: the layer's type with its required keywords and those that are not the default.

    In-place variants are described by the layer that computes the same values out of place.

    Args:
        listed: the listed type whose computation the layer's class inherits; by default the class itself.

    Raises:
        ArchitectureError: the layer is not of a listed type, or has a setting that a description cannot hold.
    """
    listed = listed or type(module)
    kind = listed.__name__
    if LAYER_TYPES.get(kind) is not listed:
        raise ArchitectureError(
            f"A {type(module).__module__}.{kind} layer cannot be described.", hint=suggest(kind, sorted(LAYER_TYPES))
        )
    _check_describable(module, kind)
    kwargs: dict[str, Any] = {}
    for name, default in _defaults(kind).items():
        keyword = LAYER_KEYWORDS[kind][name]
        value = _plain(getattr(module, name), keyword)
        unset = kind.startswith(("MaxPool", "AvgPool")) and name == "stride" and value == kwargs["kernel_size"]
        if value == default or unset:
            continue
        if not keyword.accepts(value):
            raise ArchitectureError(f"{kind}.{name} is {show(value)}.", where=name, hint=f"Give {keyword.expected}.")
        kwargs[name] = value
    return {"type": kind, "kwargs": kwargs}


def _defaults(kind: str) -> dict[str, Any]:
    """Default of each keyword, `_REQUIRED` where there is none, in the constructor's order."""
    parameters = inspect.signature(LAYER_TYPES[kind]).parameters
    return {name: parameters[name].default for name in parameters if name in LAYER_KEYWORDS[kind]}


def _check_describable(module: nn.Module, kind: str) -> None:
    parameters = inspect.signature(LAYER_TYPES[kind]).parameters
    for name in parameters.keys() - LAYER_KEYWORDS[kind].keys() - _UNDESCRIBED:
        value = getattr(module, name)
        held = value is not None if name == "bias" else value
        # The norms' bias keyword arrived after torch 2.11: a norm is described with the bias that `affine` implies.
        usual = module.affine if name == "bias" else parameters[name].default
        if held != usual:
            raise ArchitectureError(f"{kind}.{name} is {held}, which a description cannot hold.", where=name)


def _plain(value: Any, keyword: Keyword) -> Any:
    """An attribute as the JSON value its constructor would take."""
    if value is None or isinstance(value, torch.Tensor):
        return value is not None if keyword is FLAG else None
    if isinstance(value, tuple | list):
        if keyword.spread and len(set(value)) == 1 and value[0] is not None:
            return value[0]
        return list(value)
    return value
