"""DeepLIFT: complete at every layer, equal to a spelled-out oracle, and to captum where captum is right."""

from collections.abc import Callable

import pytest
import torch
from captum.attr import DeepLift, LayerDeepLift
from torch import nn

from neusemslice.contribution import deeplift_contributions
from neusemslice.contribution.rescale import RULES
from neusemslice.errors import DatasetError
from neusemslice.roles import ACTIVATIONS, SUPPORTED
from neusemslice.tracing import SliceableModel, trace
from tests.neusemslice.networks import functional, mlp, randomised, vgg_like
from tests.reference.cuts import completeness_error as completeness_error_at
from tests.reference.deeplift import contributions as reference


def completeness_error(model: SliceableModel, inputs: torch.Tensor, baseline: torch.Tensor | None = None) -> float:
    """Largest difference, over samples and layers, of a layer's sum from f(x) - f(x0), relative to the logits."""
    targets = torch.arange(len(inputs)) % model.categories
    found = deeplift_contributions(model, inputs, targets, baseline)
    start = torch.zeros(1, *model.input_shape) if baseline is None else baseline.unsqueeze(0)
    with torch.no_grad():
        logits = [model.graph_module(values.to(model.dtype)) for values in (inputs, start)]
    expected = (logits[0] - logits[1]).gather(1, targets.unsqueeze(1))[:, 0]
    assert expected.abs().max() > 0.01
    assert list(found) == [layer.name for layer in model.sliceable_layers]
    return max(float(((layer.sum(1) - expected).abs() / logits[0].abs().max()).max()) for layer in found.values())


def inputs_of(*shape: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda kind: kind.__name__)
def test_every_layer_sums_to_the_change_of_the_logit(activation: type[nn.Module]) -> None:
    inputs = inputs_of(12, 2, 12, 12)
    network = vgg_like(activation)
    assert completeness_error(trace(network, inputs), inputs) < 1e-5
    assert completeness_error(trace(network.double(), inputs), inputs) < 1e-13


def test_another_baseline() -> None:
    inputs = inputs_of(12, 2, 12, 12)
    assert completeness_error(trace(vgg_like(), inputs), inputs, baseline=inputs.mean(0)) < 1e-5


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool1d(3, stride=1, padding=1), nn.MaxPool1d(4, stride=2, dilation=2), nn.AdaptiveMaxPool1d(4)],
    ids=["overlapping", "dilated", "adaptive"],
)
def test_max_pools_over_one_dimension(pool: nn.Module) -> None:
    inputs = inputs_of(12, 2, 16)
    reduced = pool(torch.zeros(1, 4, 16)).shape[2]
    layers = (nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4 * reduced, 3))
    assert completeness_error(trace(randomised(nn.Sequential(*layers)), inputs), inputs) < 1e-5


def test_a_sample_equal_to_the_baseline_contributes_nothing() -> None:
    model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
    found = deeplift_contributions(model, torch.zeros(2, 2, 12, 12), torch.tensor([0, 1]))
    assert all(layer.abs().max() < 1e-6 for layer in found.values())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU], ids=lambda kind: kind.__name__)
def test_the_spelled_out_rule(activation: type[nn.Module]) -> None:
    """Overlapping max pool straight behind an activation; the contributions themselves, not only their sum."""
    network = randomised(
        nn.Sequential(
            nn.Conv2d(1, 3, 3),
            activation(),
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(3, 2, 2),
            activation(),
            nn.Flatten(),
            nn.Linear(18, 2),
        )
    ).double()
    inputs = inputs_of(4, 1, 6, 6).double()
    targets = torch.tensor([0, 1, 1, 0])
    found = deeplift_contributions(trace(network, inputs), inputs, targets)
    for sample, target in enumerate(targets.tolist()):
        for name, cut in (("0", 1), ("3", 4)):
            expected = reference(network, cut, inputs[sample], target).flatten(1).sum(1)
            assert torch.allclose(found[name][sample], expected, rtol=1e-9, atol=1e-12)


def test_a_pool_whose_winner_moves_by_hand() -> None:
    """x = (3, 1), x0 = (0, 2): the pool rises from 2 to 3, 1/3 of the first value's own rise."""
    model = trace(
        nn.Sequential(nn.Conv1d(1, 1, 1), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(1, 2)), torch.zeros(1, 1, 2)
    )
    for name, value in (("0.weight", 1.0), ("0.bias", 0.0), ("3.weight", 1.0), ("3.bias", 0.0)):
        model.graph_module.get_parameter(name).fill_(value)
    found = deeplift_contributions(
        model, torch.tensor([[[3.0, 1.0]]]), torch.tensor([0]), baseline=torch.tensor([[0.0, 2.0]])
    )
    assert found["0"].tolist() == [[1.0]]


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
@pytest.mark.parametrize("case", ["mlp", "convolutions"])
def test_captum_where_it_is_right(case: str) -> None:
    """captum 0.9 is right for ReLU networks without a max pool behind the ReLU."""
    convolutions = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)
    )
    network, shape = (mlp(), (6,)) if case == "mlp" else (randomised(convolutions), (1, 8, 8))
    inputs, targets = inputs_of(5, *shape), torch.tensor([0, 1, 2, 1, 0])
    model = trace(network, inputs)
    found = deeplift_contributions(model, inputs, targets)
    for layer in model.sliceable_layers:
        # captum leaves out the rule of the layer it attributes to: read at the input of the next producer
        following = network[int(layer.read_node) + 1]
        expected = LayerDeepLift(network, following).attribute(
            inputs, torch.zeros_like(inputs), target=targets, attribute_to_layer_input=True
        )
        expected = expected.detach().reshape(5, layer.neurons, -1).sum(2)
        assert torch.allclose(found[layer.name], expected, rtol=1e-4, atol=1e-6)


def smooth() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Conv2d(4, 5, 3), nn.GELU(), nn.Flatten(), nn.Linear(80, 3))


class Gate(nn.Module):
    """Squeeze and excitation in small."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.act = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Sigmoid()
        self.out = nn.Linear(144, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.out((x * self.act(self.gate(x))).flatten(1))


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
@pytest.mark.parametrize("make", [smooth, Gate], ids=["SiLU, GELU", "gate"])
def test_who_is_right_where_captum_differs(make: Callable[[], nn.Module]) -> None:
    """The contributions of the input have to sum to the change of the logit. captum 0.9's miss by percents."""
    network, inputs = randomised(make()), inputs_of(8, 1, 8, 8)
    targets = torch.arange(8) % 3
    with torch.no_grad():
        change = (network(inputs) - network(torch.zeros_like(inputs[:1]))).gather(1, targets[:, None])[:, 0]
    theirs = (
        DeepLift(network).attribute(inputs.clone().requires_grad_(), torch.zeros_like(inputs), target=targets).detach()
    )
    missed = (theirs.flatten(1).sum(1) - change).abs().max() / change.abs().max()
    assert missed > 0.01
    model = trace(network, inputs)
    assert completeness_error_at(model, inputs, targets, cut=0) < 1e-5  # at the input
    ours = deeplift_contributions(model, inputs, targets)
    if make is not Gate:  # whose branches have to be taken together
        assert all(torch.allclose(layer.sum(1), change, rtol=1e-4, atol=1e-5) for layer in ours.values())


def test_lifted_functions_and_modules_used_twice() -> None:
    inputs = inputs_of(12, 2, 12, 12)
    model = trace(functional(), inputs)
    found = deeplift_contributions(model, inputs, torch.zeros(12, dtype=torch.long))
    assert model.logits_node == "out"
    change = found["hidden"].sum(1)
    assert all(torch.allclose(layer.sum(1), change, atol=1e-5) for layer in found.values())
    assert change.abs().max() > 0.1


AFFINE = {
    "AvgPool1d", "AvgPool2d", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d",
    "Conv1d", "Conv2d", "Conv3d", "Linear", "Dropout", "Dropout1d", "Dropout2d", "Flatten", "Identity", "Add", "Concat",
    "Mean", "Narrow", "Permute", "Prepend", "QueryKeyValue", "Reshape", "Scale", "Scatter", "Select", "Shift",
    "Subtract", "Affine", "Divide", "Sum",
}  # fmt: skip
"""Layers whose own gradient is their multiplier, in eval mode."""


def test_every_nonlinear_layer_has_a_rule() -> None:
    assert {kind.__name__ for kind in SUPPORTED - RULES.keys()} == AFFINE


def test_a_baseline_of_another_shape_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"baseline has shape \(5,\).*takes \(6,\)"):
        deeplift_contributions(trace(mlp(), torch.zeros(1, 6)), torch.zeros(1, 6), torch.tensor([0]), torch.zeros(5))
