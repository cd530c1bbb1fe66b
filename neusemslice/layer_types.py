"""The closed table of layers an architecture may name: for each, its constructor's keywords and what they accept."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import nn

from neusemslice import graph_layers
from neusemslice.errors import ArchitectureError

MAX_CHANNELS = 1_000_000
MAX_WINDOW = 4096
MAX_NUMBER = 2**1000
"""Largest whole number that stands for a real one: JSON knows no other, and floats end at 2^1024."""


@dataclass(frozen=True)
class Keyword:
    """What one constructor keyword accepts. `spread` says that a single number stands for one number a dimension."""

    expected: str
    accepts: Callable[[Any], bool]
    spread: bool = False


def _is_int(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= MAX_NUMBER
    return isinstance(value, float) and math.isfinite(value)


def _window(dimensions: int, least: int, *words: str | None) -> Keyword:
    """One number, or one for each dimension; `words` are accepted in place of the whole."""

    def accepts(value: Any) -> bool:
        if isinstance(value, list):
            return len(value) == dimensions and all(_is_int(number, least, MAX_WINDOW) for number in value)
        return _is_int(value, least, MAX_WINDOW) or value in words

    also = "".join(f" or {word!r}" for word in words)
    return Keyword(
        f"an integer from {least} to {MAX_WINDOW}, a list of {dimensions} of them{also}", accepts, spread=True
    )


def _target(dimensions: int) -> Keyword:
    """Output size of an adaptive pool: null in the list keeps that dimension as it is."""

    def accepts(value: Any) -> bool:
        if isinstance(value, list):
            return len(value) == dimensions and all(size is None or _is_int(size, 1, MAX_WINDOW) for size in value)
        return _is_int(value, 1, MAX_WINDOW)

    expected = f"an integer from 1 to {MAX_WINDOW}, or a list of {dimensions} of them or null"
    return Keyword(expected, accepts, spread=True)


def _choice(*words: str) -> Keyword:
    return Keyword(f"one of {', '.join(map(repr, words))}", lambda value: value in words)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 4 and all(_is_int(size, 1, MAX_CHANNELS) for size in value)


CHANNELS = Keyword(f"an integer from 1 to {MAX_CHANNELS}", lambda value: _is_int(value, 1, MAX_CHANNELS))
SHAPE = Keyword(
    f"an integer from 1 to {MAX_CHANNELS} or a list of 1 to 4 of them",
    lambda value: CHANNELS.accepts(value) or _is_shape(value),
)
PROBABILITY = Keyword("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_NUMBER = Keyword("a finite number", _is_number)
_NUMBER_OR_NULL = Keyword("a finite number or null", lambda value: value is None or _is_number(value))
_POSITIVE = Keyword("a number above 0", lambda value: _is_number(value) and value > 0)
_NOT_NEGATIVE = Keyword("a number from 0 on", lambda value: _is_number(value) and value >= 0)
FLAG = Keyword("true or false", lambda value: isinstance(value, bool))
_DIM = Keyword("an integer from -5 to 5", lambda value: _is_int(value, -5, 5))
_DIMS = Keyword(
    "a list of 1 to 5 integers from -5 to 5",
    lambda value: isinstance(value, list) and 1 <= len(value) <= 5 and all(_is_int(dim, -5, 5) for dim in value),
)
_PLACE = Keyword(f"an integer from 0 to {MAX_CHANNELS}", lambda value: _is_int(value, 0, MAX_CHANNELS))
_PLACES = Keyword(
    "a list of integers from 0 on",
    lambda value: isinstance(value, list) and 1 <= len(value) <= MAX_CHANNELS and all(map(_PLACE.accepts, value)),
)
_SIZES = Keyword("a list of 1 to 4 integers above 0", _is_shape)
_DIVISOR = Keyword("an integer above 0 or null", lambda value: value is None or CHANNELS.accepts(value))


def _conv(dimensions: int) -> dict[str, Keyword]:
    return {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "kernel_size": _window(dimensions, 1),
        "stride": _window(dimensions, 1),
        "padding": _window(dimensions, 0, "same", "valid"),
        "dilation": _window(dimensions, 1),
        "groups": CHANNELS,
        "bias": FLAG,
        "padding_mode": _choice("zeros", "reflect", "replicate", "circular"),
    }


_BATCH_NORM = {
    "num_features": CHANNELS,
    "eps": _NOT_NEGATIVE,
    "momentum": _NUMBER_OR_NULL,
    "affine": FLAG,
    "track_running_stats": FLAG,
}


_LEARNED = {"shape": _SIZES, "learned": FLAG}


def _pool(dimensions: int) -> dict[str, Keyword]:
    return {
        "kernel_size": _window(dimensions, 1),
        "stride": _window(dimensions, 1, None),
        "padding": _window(dimensions, 0),
        "ceil_mode": FLAG,
    }


def _max_pool(dimensions: int) -> dict[str, Keyword]:
    return {**_pool(dimensions), "dilation": _window(dimensions, 1)}


def _avg_pool(dimensions: int) -> dict[str, Keyword]:
    return {**_pool(dimensions), "count_include_pad": FLAG}


LAYER_KEYWORDS: dict[str, dict[str, Keyword]] = {
    "Add": {},
    "AdaptiveAvgPool1d": {"output_size": _target(1)},
    "AdaptiveAvgPool2d": {"output_size": _target(2)},
    "AdaptiveMaxPool1d": {"output_size": _target(1)},
    "AdaptiveMaxPool2d": {"output_size": _target(2)},
    "AvgPool1d": _avg_pool(1),
    "AvgPool2d": {**_avg_pool(2), "divisor_override": _DIVISOR},
    "Affine": {"factor": _NUMBER, "divisor": _NUMBER, "shift": _NUMBER},
    "Attention": {"num_heads": CHANNELS, "dropout": PROBABILITY},
    "BatchNorm1d": _BATCH_NORM,
    "BatchNorm2d": _BATCH_NORM,
    "BatchNorm3d": _BATCH_NORM,
    "CELU": {"alpha": _POSITIVE},
    "Concat": {"dim": _DIM},
    "Conv1d": _conv(1),
    "Conv2d": _conv(2),
    "Conv3d": _conv(3),
    "Divide": _LEARNED,
    "Dropout": {"p": PROBABILITY},
    "Dropout1d": {"p": PROBABILITY},
    "Dropout2d": {"p": PROBABILITY},
    "ELU": {"alpha": _NUMBER},
    "Flatten": {"start_dim": _DIM, "end_dim": _DIM},
    "GELU": {"approximate": _choice("none", "tanh")},
    "GroupNorm": {"num_groups": CHANNELS, "num_channels": CHANNELS, "eps": _NOT_NEGATIVE, "affine": FLAG},
    "Hardshrink": {"lambd": _NOT_NEGATIVE},
    "Hardsigmoid": {},
    "Hardswish": {},
    "Hardtanh": {"min_val": _NUMBER, "max_val": _NUMBER},
    "Identity": {},
    "LayerNorm": {"normalized_shape": SHAPE, "eps": _NOT_NEGATIVE, "elementwise_affine": FLAG, "bias": FLAG},
    "LeakyReLU": {"negative_slope": _NUMBER},
    "Linear": {"in_features": CHANNELS, "out_features": CHANNELS, "bias": FLAG},
    "LogSigmoid": {},
    "LogSoftmax": {"dim": _DIM},
    "MaxPool1d": _max_pool(1),
    "MaxPool2d": _max_pool(2),
    "Mean": {"dims": _DIMS, "keepdim": FLAG},
    "Mish": {},
    "Multiply": {},
    "Narrow": {"dim": _DIM, "start": _PLACE, "length": CHANNELS, "step": CHANNELS},
    "PReLU": {"num_parameters": CHANNELS, "init": _NUMBER},
    "Permute": {"dims": _DIMS},
    "Prepend": _LEARNED,
    "QueryKeyValue": {"embed_dim": CHANNELS, "num_heads": CHANNELS, "head_dim": CHANNELS, "bias": FLAG},
    "ReLU": {},
    "ReLU6": {},
    "Reshape": {"shape": _SIZES},
    "SELU": {},
    "Scale": _LEARNED,
    "Scatter": {"kept": _PLACES, "size": CHANNELS, "dim": _DIM},
    "Select": {"dim": _DIM, "index": _PLACE},
    "Shift": _LEARNED,
    "SiLU": {},
    "Sigmoid": {},
    "Softmax": {"dim": _DIM},
    "Softplus": {"beta": _POSITIVE, "threshold": _NUMBER},
    "Softshrink": {"lambd": _NOT_NEGATIVE},
    "Softsign": {},
    "Subtract": {},
    "Sum": {"dims": _DIMS, "keepdim": FLAG},
    "Tanh": {},
    "Tanhshrink": {},
}
LAYER_TYPES: dict[str, type[nn.Module]] = {
    name: getattr(graph_layers, name, None) or getattr(nn, name) for name in LAYER_KEYWORDS
}
JOIN_TYPES = frozenset(join.__name__ for join in graph_layers.JOINS)
"""Types that take several inputs, so that they stand in a graph only."""


def suggest(name: str, known: list[str]) -> str:
    """The hint of an error about an unknown name: the closest known one, and all of them."""
    close = get_close_matches(name, known, n=1)
    return (f"Did you mean {close[0]!r}? " if close else "") + f"Known: {', '.join(known) or 'none'}."


def check_keywords(values: Any, known: dict[str, Keyword], where: str) -> dict[str, Any]:
    """The values with JSON lists as tuples, when all are known and accepted.

    Raises:
        ArchitectureError: `values` is no JSON object, or has an unknown keyword or a refused value.
    """
    if not isinstance(values, dict):
        raise ArchitectureError(f"{where} is {show(values)}.", where=where, hint="Give a JSON object.")
    checked = {}
    for name, value in values.items():
        if name not in known:
            raise ArchitectureError(
                f"{where} has no keyword {show(name)}.", where=f"{where}.{name}", hint=suggest(str(name), sorted(known))
            )
        if not known[name].accepts(value):
            raise ArchitectureError(
                f"{where}.{name} is {show(value)}.", where=f"{where}.{name}", hint=f"Give {known[name].expected}."
            )
        checked[name] = tuple(value) if isinstance(value, list) else _as_float(value)
    return checked


def _as_float(value: Any) -> Any:
    """A whole number beyond torch's integers, as it comes back from a database that writes 1e20 in full."""
    return float(value) if isinstance(value, int) and abs(value) >= 2**63 else value


def show(value: Any) -> str:
    """A stranger's value in a message: as written, cut short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
