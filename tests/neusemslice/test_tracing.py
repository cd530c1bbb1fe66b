"""The canonical form computes the same bits, says where neurons are read, and refuses what it cannot slice exactly."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 torch's own name for it
import torch.nn.utils.prune
import torchvision
from torch import Tensor, nn

from neusemslice.checkpoint import load_checkpoint, save_checkpoint
from neusemslice.errors import UnsupportedModelError
from neusemslice.layers import LAYER_TYPES
from neusemslice.roles import ACTIVATIONS, CARRIERS, SUPPORTED
from neusemslice.tracing import SliceableLayer, SliceableModel, trace
from tests.neusemslice.networks import Functional, functional, mlp, randomised, vgg_like

IMAGES = torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["alexnet", "vgg16_bn", "vgg19"])
def test_torchvision_networks_keep_their_bits_and_names(name: str) -> None:
    """With 16 neurons in the hidden linear layers, for speed."""
    with torch.device("meta"):
        network = getattr(torchvision.models, name)(num_classes=10, dropout=0.1).eval()
    wide = {path: layer for path, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    for layer, features in zip(wide.values(), ((None, 16), (16, 16), (16, 10)), strict=True):
        layer.in_features, layer.out_features = features[0] or layer.in_features, features[1]
        layer.weight = nn.Parameter(torch.empty(layer.out_features, layer.in_features))
        layer.bias = nn.Parameter(torch.empty(layer.out_features))
    network = randomised(network.to_empty(device="cpu"))
    inputs = torch.randn(2, 3, 64, 64)
    model = trace(network, inputs)
    with torch.no_grad():
        assert torch.equal(model(inputs), network(inputs))
    assert model.graph_module.state_dict().keys() == network.state_dict().keys()
    producers = [path for path, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [layer.name for layer in model.sliceable_layers] == producers[:-1]
    assert model.logits_node == producers[-1]
    assert model.categories == 10
    assert model.input_shape == (3, 64, 64)


def test_layers_are_read_behind_their_last_norm_or_activation() -> None:
    assert trace(vgg_like(), IMAGES).sliceable_layers == (
        SliceableLayer("0", neurons=6, branch=("0", "1", "2", "3"), read_node="2", axis=1, spatial=144),
        SliceableLayer("4", neurons=5, branch=("4", "5", "6", "7", "8", "9"), read_node="8", axis=1, spatial=4),
        SliceableLayer("10", neurons=8, branch=("10", "11"), read_node="11", axis=1, spatial=1),
    )


def test_functions_become_layers_beside_their_callers_layers() -> None:
    network = functional()
    model = trace(network, IMAGES)
    layers = {
        path: type(layer).__name__ for path, layer in model.graph_module.named_modules() if path in _leaves(model)
    }
    assert layers == {
        "body.first": "Conv2d",
        "act": "ReLU",
        "avgpool2d": "AvgPool2d",
        "body.second": "Conv2d",
        "act_1": "ReLU",
        "relu": "ReLU",
        "maxpool2d": "MaxPool2d",
        "dropout": "Dropout",
        "flatten": "Flatten",
        "hidden": "Linear",
        "leakyrelu": "LeakyReLU",
        "out": "Linear",
        "logsoftmax": "LogSoftmax",
    }
    assert model.logits_node == "out"
    assert model.graph_module.get_submodule("dropout").p == 0.25
    assert not model.graph_module.get_submodule("act").inplace
    with torch.no_grad():
        assert torch.equal(model(IMAGES), network(IMAGES))
    assert [layer.read_node for layer in model.sliceable_layers] == ["act", "relu", "leakyrelu"]


def _leaves(model: SliceableModel) -> list[str]:
    return [str(node.target) for node in model.graph_module.graph.nodes if node.op == "call_module"]


def test_a_function_inside_a_block_is_placed_in_the_block() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.Linear(4, 4)  # takes the name that the function would get

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.relu(x))

    model = trace(nn.Sequential(Block(), nn.Linear(4, 2)), torch.zeros(1, 4))
    assert _leaves(model) == ["0.relu", "0.relu_1", "1"]


class Stem(nn.Module):
    """A convolution, then `function`, then a classifier."""

    def __init__(self, function: Callable[[Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.function, self.conv, self.out = function, nn.Conv2d(2, 3, 3), nn.Linear(features, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.function(self.conv(x)))


@pytest.mark.parametrize(
    ("function", "features"),
    [
        (lambda x: torch.flatten(F.adaptive_avg_pool2d(F.relu(x, inplace=True), 2), 1), 12),
        (lambda x: F.adaptive_max_pool2d(x.relu_(), (2, 3)).flatten(1), 18),
        (lambda x: F.max_pool2d(torch.relu(x), kernel_size=3, stride=2, padding=1).view(x.size(0), -1), 75),
        (lambda x: F.max_pool2d(F.elu(x, 0.5), 2).view(-1, 75), 75),
        (lambda x: F.avg_pool2d(F.gelu(x, approximate="tanh"), 2, count_include_pad=False).reshape(x.shape[0], -1), 75),
        (lambda x: F.hardtanh(x, -0.2, 0.3).sigmoid().view(x.shape[0], 300), 300),
        (lambda x: F.max_pool1d(F.softplus(x, beta=2).flatten(2), 5).flatten(1), 60),
        (lambda x: (2 * F.relu(x) - 0.3).flatten(1), 300),
        (lambda x: torch.sub(1.5, -(x / 3)).relu().sub(x).flatten(1), 300),
        (lambda x: (x * F.relu6(x + 3) / 6).flatten(1), 300),
        (lambda x: torch.tanh(F.silu(x)).contiguous().view((x.size(0), -1)), 300),
    ],
)
def test_functions_with_their_settings(function: Callable[[Tensor], Tensor], features: int) -> None:
    network = randomised(Stem(function, features))
    model = trace(network, IMAGES)
    with torch.no_grad():
        assert torch.equal(model(IMAGES), network(IMAGES))
        assert torch.equal(model(IMAGES[:1]), network(IMAGES[:1]))
    assert len(model.sliceable_layers) == 1


def test_nothing_changes_for_the_caller() -> None:
    network = Functional().train()
    network.hidden.eval()
    network.out.weight.requires_grad_(requires_grad=False)
    calls: list[str] = []
    network.hidden.register_forward_hook(lambda *_: calls.append("hook"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    model = trace(network, IMAGES)
    assert not calls
    assert len(network.hidden._forward_hooks) == 1
    assert network.training
    assert network.act.training
    assert network.act.inplace
    assert not network.hidden.training
    assert network.hidden.weight.requires_grad
    assert not network.out.weight.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    model.graph_module.get_parameter("hidden.weight").fill_(0)
    assert torch.equal(before["hidden.weight"], network.hidden.weight)


def test_the_canonical_form_is_in_eval_mode_without_gradients() -> None:
    model = trace(vgg_like().train(), IMAGES)
    assert not any(module.training for module in model.graph_module.modules())
    assert not any(parameter.requires_grad for parameter in model.graph_module.parameters())


def test_to_makes_a_new_model() -> None:
    model = trace(mlp(), torch.zeros(1, 6))
    moved = model.to("meta")
    assert (moved.device.type, model.device.type) == ("meta", "cpu")
    assert moved.fingerprint == model.fingerprint


def test_fingerprint_is_of_structure_and_weights(tmp_path: Path) -> None:
    network = vgg_like()
    model = trace(network, IMAGES)
    assert trace(network, IMAGES[:1]).fingerprint == model.fingerprint
    assert trace(model.graph_module, IMAGES).fingerprint == model.fingerprint
    save_checkpoint(model.graph_module, model.input_shape, tmp_path / "model.safetensors")
    assert trace(load_checkpoint(tmp_path / "model.safetensors"), IMAGES).fingerprint == model.fingerprint

    changed = copy.deepcopy(network)
    bits = changed[4].weight.data.view(torch.int32)
    bits[0, 0, 0, 0] ^= 1
    assert trace(changed, IMAGES).fingerprint != model.fingerprint
    network[11] = nn.LeakyReLU()
    assert trace(network, IMAGES).fingerprint != model.fingerprint


def test_fingerprint_is_the_same_in_another_process() -> None:
    program = (
        "import torch; from tests.neusemslice.networks import mlp; from neusemslice.tracing import trace;"
        "print(trace(mlp(), torch.zeros(1, 6)).fingerprint)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == trace(mlp(), torch.zeros(1, 6)).fingerprint


def test_fingerprints_cover_half_precision() -> None:
    networks = [mlp().bfloat16(), mlp().half(), mlp()]
    assert len({trace(network, torch.zeros(1, 6)).fingerprint for network in networks}) == 3


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + F.relu(self.block(x)))


class Shared(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(self.block(x)))


class Branching(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(x)) if x.sum() > 0 else self.out(x)


class Divided(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.block(x)) / x)


class AlwaysDropping(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.dropout(self.block(x), 0.5))


class TwoOutputs(Residual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.out(self.block(x)), x


class TwoInputs(Residual):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(self.block(x) + y)


class HiddenInPlace(Residual):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.block(x)
        hidden.relu_()
        return self.out(hidden)


class FixedBatch(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(x).view(2, 6))


def tied() -> nn.Module:
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    network[2].weight = network[0].weight
    return network


def pruned() -> nn.Module:
    network = mlp()
    nn.utils.prune.l1_unstructured(network[0], "weight", 0.5)
    return network


def gated() -> nn.Module:
    network = mlp()
    network[0].register_parameter("gate", nn.Parameter(torch.ones(9)))
    return network


def normed() -> nn.Module:
    network = mlp()
    nn.utils.parametrizations.weight_norm(network[0])
    return network


FLAT, IMAGE = (2, 6), (2, 2, 12, 12)


@pytest.mark.parametrize(
    ("build", "shape", "node", "message"),
    [
        (Residual, FLAT, "out", "no layer to slice"),
        (Shared, FLAT, "block", "'block'.* called twice with the same weights"),
        (Branching, FLAT, "input", "cannot be traced: TraceError.*control flow"),
        (Divided, FLAT, "truediv", "truediv at 'truediv' divides by a tensor"),
        (AlwaysDropping, FLAT, "dropout", "training set"),
        (TwoOutputs, FLAT, "output", "more than one tensor"),
        (TwoInputs, FLAT, "input", r"2 inputs \(x, y\)"),
        (HiddenInPlace, FLAT, "output", "does not compute its own traced graph"),
        (FixedBatch, FLAT, "view", r"fails at 'view' on an input of shape \(3, 6\)"),
        (tied, FLAT, "2", "tied weights"),
        (pruned, FLAT, "input", "cannot be copied"),
        (gated, FLAT, "0", r"'0' \(Linear\) is not a plain layer: .*gate"),
        (normed, FLAT, "0", "'0' .ParametrizedLinear. is not a plain layer"),
        (lambda: nn.Sequential(nn.Linear(6, 3)), FLAT, "0", "no layer to slice"),
        (lambda: nn.Sequential(nn.Flatten()), FLAT, "input", "no parameters"),
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)), FLAT, "2", "no layer to slice"),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.Softmax(1), nn.Linear(4, 3)), FLAT, "2", "no layer to slice"),
        (
            lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)),
            FLAT,
            "1",
            "statistics of each batch",
        ),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.MaxPool1d(2), nn.Linear(2, 3)), FLAT, "2", "no layer to slice"),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3)), IMAGE, "1", r"not \[batch, categories"),
        (lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 3), nn.Flatten()), IMAGE, "0", "is a ConvTranspose2d"),
        (
            lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(0), nn.Linear(800, 3)),
            IMAGE,
            "2",
            "fails at '2'",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(1), nn.Linear(100, 3)),
            IMAGE[1:],
            "0",
            "fails at '0'",
        ),
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.Flatten(0)), FLAT, "1", "keep the samples of a batch apart"),
        (mlp, (2, 7), "0", r"fails at '0' on an input of shape \(2, 7\)"),
    ],
)
def test_what_cannot_be_sliced_is_named(
    build: Callable[[], nn.Module], shape: tuple[int, ...], node: str, message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        trace(build(), torch.ones(shape))
    assert caught.value.node == node
    assert caught.value.hint


class InPlace(nn.Module):
    """x is changed in place before it is added; on zeros that makes no difference."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.out = nn.Conv2d(2, 2, 1, bias=False), nn.ReLU(inplace=True), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.out((x + self.relu(x)).mean((2, 3)))


class FirstOfBatch(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(x))[0]


class OverSamples(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(x).softmax(0))


@pytest.mark.parametrize(
    ("build", "example", "message"),
    [
        (InPlace, torch.zeros(1, 2, 4, 4), "does not compute its own traced graph"),
        (FirstOfBatch, torch.zeros(1, 6), "."),
        (OverSamples, torch.zeros(1, 6), "other samples of its batch"),
        (lambda: nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 3)), torch.zeros(1, 6), "without values"),
        (lambda: torch.jit.script(mlp()), torch.zeros(1, 6), "TorchScript"),
        (lambda: mlp().to("meta"), torch.zeros(1, 6), "without values"),
        (mlp, torch.zeros(0, 6), "example input"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_zeros_hide_nothing_and_every_refusal_is_typed(build: Callable[[], nn.Module], example, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        trace(build(), example)


class OwnConv(nn.Conv2d):
    """A layer of one's own that computes what its base does."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)


class WithOptions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = OwnConv(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, features: bool = False) -> Tensor:
        x = F.relu(self.conv(x)).mean((2, 3))
        if mask is not None:
            x = x * mask
        return x if features else self.out(x)


def test_subclasses_and_optional_arguments() -> None:
    network = randomised(WithOptions())
    model = trace(network, IMAGES[:1])
    assert [layer.name for layer in model.sliceable_layers] == ["conv"]
    with torch.no_grad():
        assert torch.equal(model(IMAGES), network(IMAGES))


@pytest.mark.parametrize("kind", sorted(SUPPORTED, key=lambda kind: kind.__name__))
def test_every_supported_layer_can_be_written_to_a_checkpoint(kind: type[nn.Module]) -> None:
    assert LAYER_TYPES[kind.__name__] is kind


@pytest.mark.parametrize("kind", CARRIERS, ids=lambda kind: kind.__name__)
def test_carriers_keep_a_zero_neuron_zero(kind: type[nn.Module]) -> None:
    settings = {
        "Adaptive": {"output_size": 2},
        "MaxPool": {"kernel_size": 3, "padding": 1},
        "AvgPool": {"kernel_size": 2},
        "Mean": {"dims": (2, 3)},
        "Sum": {"dims": (2, 3)},
        "Permute": {"dims": (0, 1, 3, 2)},
        "Select": {"dim": 2, "index": 1},
        "Narrow": {"dim": 2, "start": 1, "length": 3},
    }
    layer = kind(**next((given for name, given in settings.items() if kind.__name__.startswith(name)), {})).eval()
    values = -torch.rand(2, 3, 8) if kind.__name__.endswith("1d") else -torch.rand(2, 3, 8, 8)
    values[:, 1] = 0
    assert not layer(values).reshape(2, 3, -1)[:, 1].any()


@pytest.mark.parametrize("kind", ACTIVATIONS, ids=lambda kind: kind.__name__)
def test_activations_are_elementwise(kind: type[nn.Module]) -> None:
    values = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = kind()(values)
        assert torch.allclose(whole[1, 2], kind()(values[1:2, 2:3])[0, 0], rtol=1e-6)
