"""The builders an architecture may name: our own, torchvision's classifiers, and those a deployment registered."""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from neusemslice.errors import ArchitectureError
from neusemslice.graph_spec import build_graph, place_layer
from neusemslice.layer_types import CHANNELS, FLAG, JOIN_TYPES, PROBABILITY, Keyword, check_keywords, show, suggest
from neusemslice.layers import build_layer

ENTRY_POINTS = "neusemslice.architectures"
Builder = Callable[[dict[str, Any]], nn.Module]

_CLASSES = {"num_classes": CHANNELS}
_DROPOUT = {**_CLASSES, "dropout": PROBABILITY}
_TWO_DROPOUTS = {"dropout": PROBABILITY, "dropout_aux": PROBABILITY}

TORCHVISION_KEYWORDS: dict[str, dict[str, Keyword]] = {
    "alexnet": _DROPOUT,
    **{f"vgg{depth}{norm}": _DROPOUT for depth in (11, 13, 16, 19) for norm in ("", "_bn")},
    **{f"resnet{depth}": _CLASSES for depth in (18, 34, 50, 101, 152)},
    **dict.fromkeys(("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"), _CLASSES),
    **dict.fromkeys(("wide_resnet50_2", "wide_resnet101_2"), _CLASSES),
    **{f"densenet{depth}": {**_CLASSES, "drop_rate": PROBABILITY} for depth in (121, 161, 169, 201)},
    **dict.fromkeys(("squeezenet1_0", "squeezenet1_1"), _DROPOUT),
    **dict.fromkeys(("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"), _DROPOUT),
    **{f"mnasnet{width}": _DROPOUT for width in ("0_5", "0_75", "1_0", "1_3")},
    **{f"shufflenet_v2_x{width}": _CLASSES for width in ("0_5", "1_0", "1_5", "2_0")},
    **{f"efficientnet_b{size}": _DROPOUT for size in range(8)},
    **{f"efficientnet_v2_{size}": _DROPOUT for size in "sml"},
    **{f"convnext_{size}": _CLASSES for size in ("tiny", "small", "base", "large")},
    "googlenet": {**_CLASSES, "aux_logits": FLAG, "transform_input": FLAG, **_TWO_DROPOUTS},
    **{f"vit_{size}": {**_CLASSES, "image_size": CHANNELS} for size in ("b_16", "b_32", "l_16", "l_32")},
}
"""torchvision's classifiers and the keywords each takes here; weights are never downloaded."""

_LAYERS = {"layers": Keyword("a list of layers", lambda value: isinstance(value, list) and len(value) > 0)}
_MLP = {
    "sizes": Keyword(
        "a list of at least 2 positive integers",
        lambda value: isinstance(value, list) and len(value) >= 2 and all(map(CHANNELS.accepts, value)),
    ),
    "activation": Keyword("a layer's name, such as 'ReLU'", lambda value: isinstance(value, str)),
}


def find_builder(name: str, device: str = "meta") -> Builder:
    """The builder of that name, which makes a network from keywords of its own.

    Args:
        name: one of ours, a torchvision classifier, or the name of an entry point.
        device: where builders that are not ours make their tensors; ours make them on `meta`.

    Raises:
        ArchitectureError: there is none.
    """
    if name in _BUILDERS:
        return _BUILDERS[name]
    family, _, member = name.partition("/")
    if family == "torchvision" and member in TORCHVISION_KEYWORDS:
        return lambda kwargs: _build_torchvision(member, kwargs, device)
    registered = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name in registered:
        return lambda kwargs: _build_foreign(registered[name].load(), name, kwargs, device)
    known = [*_BUILDERS, *sorted(registered), *(f"torchvision/{member}" for member in TORCHVISION_KEYWORDS)]
    raise ArchitectureError(f"There is no builder {show(name)}.", where="builder", hint=suggest(name, known))


def _build_mlp(kwargs: dict[str, Any]) -> nn.Module:
    """Flatten, then a Linear between each two neighbours in `sizes`, and `activation` between the Linears."""
    checked = check_keywords(kwargs, _MLP, "kwargs")
    sizes = _required(checked, "sizes", _MLP)
    activation = {"type": checked.get("activation", "ReLU")}
    layers = [build_layer({"type": "Flatten"}, "kwargs")]
    for wide, narrow in pairwise(sizes):
        if len(layers) > 1:
            layers.append(build_layer(activation, "kwargs.activation"))
        layers.append(
            build_layer({"type": "Linear", "kwargs": {"in_features": wide, "out_features": narrow}}, "kwargs")
        )
    return nn.Sequential(*layers)


def _build_layers(kwargs: dict[str, Any]) -> nn.Module:
    """An nn.Sequential; a layer may bring a `name`, otherwise it is called by its number."""
    network = nn.Sequential()
    for number, description in enumerate(_required(check_keywords(kwargs, _LAYERS, "kwargs"), "layers", _LAYERS)):
        where = f"kwargs.layers[{number}]"
        fields = dict(description) if isinstance(description, dict) else description
        name = fields.pop("name", str(number)) if isinstance(fields, dict) else str(number)
        layer = build_layer(fields, where)
        if type(layer).__name__ in JOIN_TYPES:
            raise ArchitectureError(
                f"{where} ({type(layer).__name__}) joins several values.",
                where=where,
                hint="A list of layers has one branch: use the builder 'graph'.",
            )
        if not isinstance(name, str) or "." in name:
            raise ArchitectureError(f"{where}.name is {show(name)}.", where=f"{where}.name", hint="Use an identifier.")
        place_layer(network, name, layer, f"{where}.name")
    return network


def _required(values: dict[str, Any], name: str, known: dict[str, Keyword]) -> Any:
    if name not in values:
        raise ArchitectureError(f"kwargs lacks {name}.", where="kwargs", hint=f"Give {known[name].expected}.")
    return values[name]


def _build_torchvision(name: str, kwargs: dict[str, Any], device: str) -> nn.Module:
    checked = check_keywords(kwargs, TORCHVISION_KEYWORDS[name], "kwargs")
    models = import_module("torchvision.models")  # takes seconds, hence only here
    fixed = {"weights": None, **({"init_weights": False} if name == "googlenet" else {})}
    return _build_foreign(getattr(models, name), f"torchvision/{name}", {**checked, **fixed}, device)


def _build_foreign(build: Callable[..., Any], name: str, kwargs: dict[str, Any], device: str) -> nn.Module:
    """Call a builder that is not ours, and turn its complaints about the keywords into ours."""
    try:
        with torch.device(device):
            network = build(**kwargs)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ArchitectureError(
            f"Builder {name!r} refuses its kwargs: {error}.", where="kwargs", hint="See the builder's documentation."
        ) from error
    if not isinstance(network, nn.Module):
        raise ArchitectureError(
            f"Builder {name!r} made a {type(network).__name__}, not a torch.nn.Module.",
            where="builder",
            hint=f"Mend the entry point in the group {ENTRY_POINTS}.",
        )
    return network


_BUILDERS: dict[str, Builder] = {"mlp": _build_mlp, "layers": _build_layers, "graph": build_graph}
