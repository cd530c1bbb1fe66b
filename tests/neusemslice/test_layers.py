import inspect
import json
from typing import Any

import pytest
import torch
from torch import nn

from neusemslice import graph_layers
from neusemslice.errors import ArchitectureError
from neusemslice.layers import LAYER_TYPES, build_layer, describe_layer

LAYERS: list[nn.Module] = [
    nn.AdaptiveAvgPool1d(3),
    nn.AdaptiveAvgPool2d((None, 7)),
    nn.AdaptiveMaxPool1d(2),
    nn.AdaptiveMaxPool2d((3, 4)),
    nn.AvgPool1d(3, stride=2, count_include_pad=False),
    nn.AvgPool2d((2, 3), padding=1, divisor_override=5),
    nn.BatchNorm1d(4, affine=False),
    nn.BatchNorm2d(4, eps=1e-3, momentum=None),
    nn.BatchNorm3d(4, track_running_stats=False),
    nn.CELU(0.5),
    nn.Conv1d(2, 4, 3, padding="same", bias=False),
    nn.Conv2d(2, 4, (3, 5), stride=2, padding=(1, 2), dilation=(1, 2), groups=2, padding_mode="reflect"),
    nn.Conv3d(1, 2, 2),
    nn.Dropout(0.25),
    nn.Dropout1d(),
    nn.Dropout2d(0.1),
    nn.ELU(2.0),
    nn.Flatten(2),
    nn.GELU("tanh"),
    nn.GroupNorm(2, 4, affine=False),
    nn.Hardshrink(0.1),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.Hardtanh(-2, 2),
    nn.Identity(),
    nn.LayerNorm((8, 8), bias=False),
    nn.LeakyReLU(0.2),
    nn.Linear(3, 5, bias=False),
    nn.LogSigmoid(),
    nn.LogSoftmax(dim=1),
    nn.MaxPool1d(2),
    nn.MaxPool2d((3, 2), stride=(2, 1), padding=1, dilation=2, ceil_mode=True),
    nn.Mish(),
    nn.PReLU(3, init=0.1),
    nn.ReLU(),
    nn.ReLU6(),
    nn.SELU(),
    nn.SiLU(),
    nn.Sigmoid(),
    nn.Softmax(dim=-1),
    nn.Softplus(2.0, 10.0),
    nn.Softshrink(0.1),
    nn.Softsign(),
    nn.Tanh(),
    nn.Tanhshrink(),
    graph_layers.Add(),
    graph_layers.Concat(1),
    graph_layers.Mean((2, 3), keepdim=True),
    graph_layers.Multiply(),
    graph_layers.Divide((4, 1, 1), learned=False),
    graph_layers.Narrow(1, 2, 3, step=2),
    graph_layers.Permute((0, 2, 3, 1)),
    graph_layers.Prepend((1, 8)),
    graph_layers.Reshape((4, 1, 1)),
    graph_layers.Scale((4, 1, 1)),
    graph_layers.Scatter((2, 0), 4, 1),
    graph_layers.Select(1, 0),
    graph_layers.Affine(2.0, 3.0, -1.0),
    graph_layers.Attention(2, dropout=0.1),
    graph_layers.Subtract(),
    graph_layers.Sum((1,)),
    graph_layers.QueryKeyValue(8, 2, 4, bias=False),
    graph_layers.Shift((5, 8)),
]


def test_every_listed_type_has_a_round_trip_case() -> None:
    assert {type(layer).__name__ for layer in LAYERS} == set(LAYER_TYPES)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_description_is_json_and_its_layer_is_the_same(layer: nn.Module) -> None:
    description = json.loads(json.dumps(describe_layer(layer)))
    rebuilt = build_layer(description, "layer")
    assert type(rebuilt) is type(layer)
    assert rebuilt.extra_repr() == layer.extra_repr()
    assert describe_layer(rebuilt) == description
    shapes = {name: tensor.shape for name, tensor in layer.state_dict().items()}
    assert {name: tensor.shape for name, tensor in rebuilt.state_dict().items()} == shapes
    assert all(tensor.is_meta for tensor in rebuilt.state_dict().values())


def test_descriptions_name_only_what_differs_from_the_default() -> None:
    assert describe_layer(nn.Conv2d(3, 8, 3, padding=1)) == {
        "type": "Conv2d",
        "kwargs": {"in_channels": 3, "out_channels": 8, "kernel_size": 3, "padding": 1},
    }
    assert describe_layer(nn.MaxPool2d(2, 2)) == {"type": "MaxPool2d", "kwargs": {"kernel_size": 2}}
    assert describe_layer(nn.ReLU(inplace=True)) == {"type": "ReLU", "kwargs": {}}


class OwnReLU(nn.ReLU):
    """Not the listed type itself, whatever it inherits from."""


@pytest.mark.parametrize(
    "layer",
    [nn.MaxPool2d(2, return_indices=True), OwnReLU(), nn.LSTM(2, 2), nn.Softplus(float("inf")), nn.Flatten(-9)],
    ids=lambda layer: type(layer).__name__,
)
def test_what_a_description_cannot_hold_is_refused(layer: nn.Module) -> None:
    with pytest.raises(ArchitectureError):
        describe_layer(layer)


@pytest.mark.skipif("bias" not in inspect.signature(nn.BatchNorm2d).parameters, reason="this torch has no such norm")
def test_a_norm_without_its_bias_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="bias"):
        describe_layer(nn.BatchNorm2d(2, bias=False))


CONV = {"in_channels": 3, "out_channels": 8, "kernel_size": 3}


@pytest.mark.parametrize(
    ("description", "where", "says"),
    [
        (None, "layers[3]", "None"),
        ({"type": "ReLU", "inplace": True}, "layers[3]", "unknown field 'inplace'"),
        ({"type": "Conv2D", "kwargs": CONV}, "layers[3].type", "Did you mean 'Conv2d'"),
        ({"type": "__import__"}, "layers[3].type", "no known layer"),
        ({"type": ["Conv2d"]}, "layers[3].type", "no known layer"),
        ({"kwargs": CONV}, "layers[3].type", "None"),
        ({"type": "Linear", "kwargs": {"in_features": 3}}, "layers[3].kwargs", "lacks out_features"),
        ({"type": "Linear", "kwargs": []}, "layers[3].kwargs", "JSON object"),
        ({"type": "ReLU", "kwargs": {"inplace": True}}, "layers[3].kwargs.inplace", "no keyword 'inplace'"),
        ({"type": "Conv2d", "kwargs": {**CONV, "device": "cuda"}}, "layers[3].kwargs.device", "Known: bias"),
        ({"type": "Conv2d", "kwargs": {**CONV, "strides": 2}}, "layers[3].kwargs.strides", "Did you mean 'stride'"),
        ({"type": "Conv2d", "kwargs": {**CONV, "groups": True}}, "layers[3].kwargs.groups", "an integer"),
        ({"type": "Conv2d", "kwargs": {**CONV, "groups": 2}}, "layers[3]", "refused by torch"),
        ({"type": "Conv2d", "kwargs": {**CONV, "kernel_size": [3, 3, 3]}}, "layers[3].kwargs.kernel_size", "list of 2"),
        ({"type": "Conv2d", "kwargs": {**CONV, "kernel_size": 10**9}}, "layers[3].kwargs.kernel_size", "4096"),
        ({"type": "Conv2d", "kwargs": {**CONV, "in_channels": 3.0}}, "layers[3].kwargs.in_channels", "3.0"),
        ({"type": "Conv2d", "kwargs": {**CONV, "padding": -1}}, "layers[3].kwargs.padding", "-1"),
        ({"type": "Dropout", "kwargs": {"p": float("nan")}}, "layers[3].kwargs.p", "nan"),
        (
            {"type": "Linear", "kwargs": {"in_features": 10**30, "out_features": 1}},
            "layers[3].kwargs.in_features",
            "1000",
        ),
        ({"type": "GELU", "kwargs": {"approximate": "x" * 500}}, "layers[3].kwargs.approximate", "'none', 'tanh'"),
    ],
)
def test_bad_descriptions_say_where_and_what_to_do(description: Any, where: str, says: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        build_layer(description, "layers[3]")
    assert caught.value.where == where
    assert says in str(caught.value)
    assert len(caught.value.message) < 250


def test_an_immense_layer_costs_no_memory() -> None:
    layer = build_layer({"type": "Linear", "kwargs": {"in_features": 10**6, "out_features": 10**6}}, "layer")
    assert sum(parameter.numel() for parameter in layer.parameters()) == 10**12 + 10**6


def test_the_caller_s_default_device_is_left_alone() -> None:
    build_layer({"type": "Linear", "kwargs": {"in_features": 1, "out_features": 1}}, "layer")
    assert torch.empty(1).device.type == "cpu"


def test_whole_numbers_beyond_64_bits_are_real_numbers() -> None:
    assert (
        build_layer({"type": "Hardtanh", "kwargs": {"min_val": -(10**30), "max_val": 10**30}}, "layer").max_val == 1e30
    )
    with pytest.raises(ArchitectureError, match="a finite number"):
        build_layer({"type": "Affine", "kwargs": {"factor": 10**400}}, "layer")
