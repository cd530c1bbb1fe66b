"""Layers as maps of rows, and regression with more or fewer rows than inputs."""

import pytest
import torch
from torch import nn

from neusemslice.kernel_least_squares import KernelLeastSquares
from neusemslice.least_squares import LeastSquares, best_penalty
from neusemslice.reconstruction.layer_rows import LayerRows
from tests.neusemslice.networks import randomised
from tests.reference.ridge import ridge, windows

LAYERS = {
    "1d": (nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 11)),
    "2d": (nn.Conv2d(2, 5, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)), (2, 7, 8)),
    "3d": (nn.Conv3d(2, 3, 2, padding=1), (2, 3, 4, 3)),
    "grouped": (nn.Conv2d(6, 9, 3, padding=1, groups=3), (6, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (4, 5, 5)),
}
PADDED = {
    "reflect": nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
    "circular": nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
    "same": nn.Conv2d(2, 3, (5, 3), padding="same"),
    "valid": nn.Conv2d(2, 3, 3, padding="valid"),
}


def everywhere(rows: LayerRows, output: torch.Tensor) -> torch.Tensor:
    return torch.arange(rows.positions(output)).expand(len(output), -1)


@pytest.mark.parametrize("name", LAYERS)
def test_what_a_convolution_reads(name: str) -> None:
    layer, shape = LAYERS[name]
    value = torch.randn(3, *shape)
    rows, output = LayerRows(layer), layer(value)
    read = rows.read(value, everywhere(rows, output))
    for group in range(layer.groups):
        assert torch.equal(read[:, :, group].flatten(0, 1), windows(layer, value, group))


@pytest.mark.parametrize(
    "layer", [layer for layer, _ in LAYERS.values()] + list(PADDED.values()), ids=[*LAYERS, *PADDED]
)
def test_rows_times_weights_is_what_the_layer_gives(layer: nn.Module) -> None:
    shape = next((shape for own, shape in LAYERS.values() if own is layer), (2, 7, 7))
    layer = randomised(nn.Sequential(layer)).double()[0]
    value = torch.randn(3, *shape, dtype=torch.float64)
    rows, output = LayerRows(layer), layer(value).detach()
    at = everywhere(rows, output)
    given = torch.einsum("spgi,goi->spgo", rows.read(value, at), rows.weight).flatten(2) + layer.bias
    wanted = rows.given(output, at, torch.arange(output.shape[1])).flatten(2)
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("shape", [(6,), (4, 6), (3, 2, 6)])
def test_linear_layers_of_any_rank(shape: tuple[int, ...]) -> None:
    layer, value = nn.Linear(6, 5), torch.randn(7, *shape)
    rows, output = LayerRows(layer), layer(value).detach()
    at = everywhere(rows, output)[:, :2]
    wanted = output.reshape(7, -1, 5)[:, :2, [1, 3]]
    half = LayerRows(nn.Linear(6, 2))
    torch.testing.assert_close(half.given(output, at, torch.tensor([1, 3])).squeeze(2), wanted)
    torch.testing.assert_close(
        rows.read(value, at).squeeze(2) @ layer.weight.T + layer.bias, output.reshape(7, -1, 5)[:, :2]
    )


@pytest.mark.parametrize(("samples", "inputs"), [(60, 7), (30, 90)])
def test_both_forms_are_the_naive_regression(samples: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(samples, 2, 3, inputs, generator=generator) + 2
    truth = torch.randn(3, 4, inputs, generator=generator)
    targets = torch.einsum("srgi,goi->srgo", values, truth) + torch.randn(samples, 2, 3, 4, generator=generator)
    found = []
    for regression in (LeastSquares(), KernelLeastSquares()):
        for part, goals in zip(values.split(7), targets.split(7), strict=True):
            regression.add(part, goals)
        found.append(regression.solve())
    for one in found:
        for group in range(3):
            weight, bias = ridge(values[:, :, group].flatten(0, 1), targets[:, :, group].flatten(0, 1), one.penalty)
            torch.testing.assert_close(one.weight[group], weight, rtol=0, atol=1e-8)
            torch.testing.assert_close(one.bias[group], bias, rtol=0, atol=1e-6)
    assert found[0].penalty == found[1].penalty
    assert found[0].residual == pytest.approx(found[1].residual)


def test_the_residual_is_of_the_other_half() -> None:
    generator = torch.Generator().manual_seed(0)
    values, targets = torch.randn(40, 1, 5, generator=generator), torch.randn(40, 1, 2, generator=generator)
    fit = LeastSquares()
    fit.add(values, targets)
    found = fit.solve()
    flat, goals = values.squeeze(1).double(), targets.squeeze(1).double()
    wrong = 0.0
    for half in (0, 1):
        weight, bias = ridge(flat[half::2], goals[half::2], found.penalty)
        wrong += float((goals[1 - half :: 2] - flat[1 - half :: 2] @ weight.T - bias).square().sum())
    assert found.error == pytest.approx(wrong)
    assert found.residual == pytest.approx((wrong / float((goals - goals.mean(0)).square().sum())) ** 0.5)


@pytest.mark.parametrize("best", [1e-8, 1e-3, 0.1, 10.0])
def test_the_best_penalty_is_found_downhill(best: float) -> None:
    penalty, error = best_penalty(lambda tried: abs(torch.tensor(tried / best).log10().item()))
    assert penalty == best
    assert error == pytest.approx(0, abs=1e-6)
