import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from neusemslice.architecture import MAX_INPUT_ELEMENTS, build_network, describe_network, input_shape_of
from neusemslice.builders import TORCHVISION_KEYWORDS
from neusemslice.errors import ArchitectureError


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def linear(wide: int, narrow: int) -> dict[str, Any]:
    return {"type": "Linear", "kwargs": {"in_features": wide, "out_features": narrow}}


def test_mlp_is_flatten_and_linears() -> None:
    network = build_network({"builder": "mlp", "kwargs": {"sizes": [784, 512, 256, 10], "activation": "GELU"}})
    assert [type(layer).__name__ for layer in network.children()] == [
        "Flatten", "Linear", "GELU", "Linear", "GELU", "Linear",
    ]  # fmt: skip
    assert sum(parameter.numel() for parameter in network.parameters()) == 535_818
    assert shapes(network)["3.weight"] == (256, 512)


def test_layers_are_numbered_or_named() -> None:
    layers = [linear(4, 3), {"type": "ReLU"}, {**linear(3, 2), "name": "head"}]
    network = build_network({"builder": "layers", "kwargs": {"layers": layers}})
    assert shapes(network) == {"0.weight": (3, 4), "0.bias": (3,), "head.weight": (2, 3), "head.bias": (2,)}
    assert layers[2]["name"] == "head"  # the caller's spec is left alone


@pytest.mark.parametrize("name", sorted(TORCHVISION_KEYWORDS))
def test_every_torchvision_builder_builds_with_each_of_its_keywords(name: str) -> None:
    values = {"num_classes": 7, "image_size": 64, "aux_logits": False, "transform_input": False}
    kwargs = {keyword: values.get(keyword, 0.25) for keyword in TORCHVISION_KEYWORDS[name]}
    network = build_network({"builder": f"torchvision/{name}", "kwargs": kwargs})
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    persistent = network.state_dict().keys()
    assert all(buffer in persistent for buffer, _ in network.named_buffers())
    assert 7 in [len(parameter) for parameter in network.parameters()]


def test_replace_swaps_submodules_by_path() -> None:
    network = build_network(
        {
            "builder": "torchvision/vgg16_bn",
            "kwargs": {"num_classes": 10},
            "replace": {"avgpool": {"type": "Identity"}, "classifier": linear(512, 10)},
            "input_shape": [3, 32, 32],
        }
    )
    assert sum(parameter.numel() for parameter in network.parameters()) == 14_728_266
    assert shapes(network)["classifier.weight"] == (10, 512)


def residual_free_graph() -> fx.GraphModule:
    """A traced network with nested paths, the form every produced checkpoint has."""
    features = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    body = nn.Sequential()
    body.add_module("features", features)
    body.add_module("flatten", nn.Flatten())
    body.add_module("classifier", nn.Sequential(nn.Dropout(), nn.Linear(36, 5)))
    return fx.symbolic_trace(body.eval())


def test_a_described_graph_computes_the_same_bits() -> None:
    torch.manual_seed(0)
    network = residual_free_graph()
    spec = json.loads(json.dumps(describe_network(network, (1, 8, 8))))
    rebuilt = build_network(spec)
    assert list(rebuilt.state_dict()) == list(network.state_dict())
    rebuilt.load_state_dict(network.state_dict(), assign=True)
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(rebuilt.eval()(images), network(images))
    assert describe_network(rebuilt, (1, 8, 8)) == spec
    assert input_shape_of(spec) == (1, 8, 8)


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + x


def test_a_graph_that_data_cannot_hold_is_refused_by_node() -> None:
    with pytest.raises(ArchitectureError, match="'add'") as caught:
        describe_network(fx.symbolic_trace(Sum()), (2,))
    assert caught.value.where == "add"


def node(name: Any = "fc", inputs: Any = ("input",), **fields: Any) -> dict[str, Any]:
    return {"name": name, **linear(2, 2), "inputs": list(inputs), **fields}


@pytest.mark.parametrize(
    ("nodes", "output", "where"),
    [
        ([node(name="forward")], "forward", "kwargs.nodes[0].name"),
        ([node(name="a.training.b")], "a.training.b", "kwargs.nodes[0].name"),
        ([node(name='a"]; import os')], "x", "kwargs.nodes[0].name"),
        ([node(name="a..b")], "x", "kwargs.nodes[0].name"),
        ([node(name="")], "x", "kwargs.nodes[0].name"),
        ([node(name="input")], "x", "kwargs.nodes[0].name"),
        ([node(name="lambda")], "lambda", "kwargs.nodes[0].name"),
        ([node(name="_graph")], "_graph", "kwargs.nodes[0].name"),
        ([node(name="é")], "é", "kwargs.nodes[0].name"),
        ([node(name=".".join("a" * 30))], "x", "kwargs.nodes[0].name"),
        ([node(name=3)], "x", "kwargs.nodes[0].name"),
        ([node(), node(inputs=["fc"])], "fc", "kwargs.nodes[1].name"),
        ([node(), node(name="fc.weight", inputs=["fc"])], "fc", "kwargs.nodes[1].name"),
        ([node(), node(name="fc.inner", inputs=["fc"])], "fc", "kwargs.nodes[1].name"),
        ([node(name="fc.inner"), node(inputs=["input"])], "fc", "kwargs.nodes[1].name"),
        ([node(inputs=["later"])], "fc", "kwargs.nodes[0].inputs"),
        ([node(inputs=[])], "fc", "kwargs.nodes[0].inputs"),
        ([node(inputs=["input", "input"])], "fc", "kwargs.nodes[0].inputs"),
        ([{"name": "fc", "type": "Add", "inputs": ["input"]}], "fc", "kwargs.nodes[0].inputs"),
        ([{"name": "fc", "type": "Multiply", "inputs": ["input"] * 3}], "fc", "kwargs.nodes[0].inputs"),
        ([{"name": "fc", "type": "Concat", "kwargs": {"dim": 1}, "inputs": []}], "fc", "kwargs.nodes[0].inputs"),
        ([{"name": "fc", "type": "Add", "inputs": ["input", "later"]}], "fc", "kwargs.nodes[0].inputs"),
        ([node(inputs=[["input"]])], "fc", "kwargs.nodes[0].inputs"),
        ([node(inplace=True)], "fc", "kwargs.nodes[0]"),
        ([node(type="LSTM")], "fc", "kwargs.nodes[0].type"),
        ([7], "fc", "kwargs.nodes[0]"),
        ([node()], "nothing", "kwargs.output"),
        ([node()], ["fc"], "kwargs.output"),
        ([], "input", "kwargs.output"),
        ({}, "fc", "kwargs.nodes"),
    ],
)
def test_bad_graphs_say_where(nodes: Any, output: Any, where: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        build_network({"builder": "graph", "kwargs": {"nodes": nodes, "output": output}})
    assert caught.value.where == where
    assert caught.value.hint


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (None, "None"),
        ({}, "builder is None"),
        ({"builder": "layer"}, "Did you mean 'layers'"),
        ({"builder": "torchvision/vgg16bn"}, "Did you mean 'torchvision/vgg16_bn'"),
        ({"builder": "torchvision/list_models"}, "no builder"),
        ({"builder": "torchvision/../os"}, "no builder"),
        ({"builder": "mlp", "kwarg": {}}, "Did you mean 'kwargs'"),
        ({"builder": "mlp", "kwargs": []}, "JSON object"),
        ({"builder": "mlp", "kwargs": {}}, "lacks sizes"),
        ({"builder": "mlp", "kwargs": {"sizes": [3]}}, "at least 2"),
        ({"builder": "mlp", "kwargs": {"sizes": [3, 2, 1], "activation": "Linear"}}, "kwargs.activation"),
        ({"builder": "layers"}, "lacks layers"),
        ({"builder": "layers", "kwargs": {"layers": {}}}, "list of layers"),
        ({"builder": "layers", "kwargs": {"layers": ["ReLU"]}}, "kwargs.layers[0]"),
        ({"builder": "layers", "kwargs": {"layers": [{"type": "ReLU", "name": "a.b"}]}}, "kwargs.layers[0].name"),
        ({"builder": "layers", "kwargs": {"layers": [{"type": "ReLU", "name": "append"}]}}, "taken"),
        ({"builder": "layers", "kwargs": {"layers": [{"type": "ReLU"}] * 10_001}}, "more than 10000"),
        ({"builder": "graph"}, "lacks nodes"),
        ({"builder": "graph", "kwargs": {"nodes": [], "output": "a", "code": "1"}}, "'code'"),
        ({"builder": "torchvision/vgg16", "kwargs": {"weights": "DEFAULT"}}, "no keyword 'weights'"),
        ({"builder": "torchvision/vgg16", "kwargs": {"num_classes": -1}}, "kwargs.num_classes is -1"),
        ({"builder": "mlp", "kwargs": {"sizes": [3, 2]}, "replace": {"2": {"type": "ReLU"}}}, "no submodule"),
        ({"builder": "mlp", "kwargs": {"sizes": [3, 2]}, "replace": {"": {"type": "ReLU"}}}, "no submodule"),
        ({"builder": "mlp", "kwargs": {"sizes": [3, 2]}, "replace": {"1": {"type": "Rel"}}}, "replace.1.type"),
        ({"builder": "mlp", "kwargs": {"sizes": [10**6, 10**6]}}, "1,000,001,000,000 parameters"),
    ],
)
def test_bad_specs_say_what_was_wrong(spec: Any, says: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        build_network(spec)
    assert says in str(caught.value)


def test_a_deployment_can_lower_the_caps() -> None:
    spec = {"builder": "mlp", "kwargs": {"sizes": [3, 2]}}
    build_network(spec, max_parameters=8, max_layers=3)
    with pytest.raises(ArchitectureError, match="8 parameters; at most 7"):
        build_network(spec, max_parameters=7)
    with pytest.raises(ArchitectureError, match="3 modules; at most 2"):
        build_network(spec, max_layers=2)


@pytest.mark.parametrize(
    "shape", [None, [], [0], [1, -1], [True], [1.0], "3", [2] * 5, [MAX_INPUT_ELEMENTS, 2], (3, 32)]
)
def test_bad_input_shapes_are_refused(shape: Any) -> None:
    with pytest.raises(ArchitectureError, match="input_shape"):
        input_shape_of({"builder": "mlp", "input_shape": shape})


BUILDERS_MODULE = """
from torch import nn

def small(width):
    return nn.Linear(width, 2)

def tied():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    return nn.Sequential(first, second)

def wrong():
    return 3
"""
ENTRY_POINTS = """
[neusemslice.architectures]
acme/small = acme_nets:small
acme/tied = acme_nets:tied
acme/wrong = acme_nets:wrong
mlp = acme_nets:small
"""


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution that registers builders, as a deployment would bring it."""
    (tmp_path / "acme_nets.py").write_text(BUILDERS_MODULE)
    info = tmp_path / "acme_nets-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-nets\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_nets", raising=False)


@pytest.mark.usefixtures("registered")
def test_deployments_register_builders() -> None:
    build_network({"builder": "mlp", "kwargs": {"sizes": [3, 2]}})
    assert "acme_nets" not in sys.modules  # a built-in name wins, and nothing is loaded for it
    network = build_network({"builder": "acme/small", "kwargs": {"width": 5}})
    assert shapes(network) == {"weight": (2, 5), "bias": (2,)}
    assert network.get_parameter("weight").is_meta


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("builder", "kwargs", "says"),
    [
        ("acme/small", {"depth": 5}, "refuses its kwargs"),
        ("acme/small", {"width": -5}, "refuses its kwargs"),
        ("acme/tied", {}, "'0.weight' and '1.weight' are one tensor"),
        ("acme/wrong", {}, "made a int"),
        ("acme/smal", {}, "Did you mean 'acme/small'"),
    ],
)
def test_registered_builders_fail_clearly(builder: str, kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        build_network({"builder": builder, "kwargs": kwargs})
    assert says in str(caught.value)
