"""Each sample's (w * dL/dw)^2, summed over a neuron's weights: every kind of layer against the gradient itself."""

import copy

import pytest
import torch
from torch import Tensor, nn

from neusemslice.contribution import weight_terms as module
from neusemslice.contribution.weight_terms import FEW_POSITIONS, weight_terms

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

LAYERS = {
    "linear": (nn.Linear(5, 4), (5,)),
    "linear on few tokens": (nn.Linear(5, 4), (3, 5)),
    "linear on many tokens": (nn.Linear(5, 4), (7, 5)),
    "linear on a grid": (nn.Linear(5, 4), (3, 2, 5)),
    "1d": (nn.Conv1d(3, 4, 3, padding=1), (3, 9)),
    "1d strided": (nn.Conv1d(3, 4, 3, stride=2, dilation=2), (3, 11)),
    "1d grouped to few": (nn.Conv1d(4, 6, 3, stride=3, groups=2), (4, 7)),
    "2d": (nn.Conv2d(3, 4, 3, padding=1, bias=False), (3, 5, 6)),
    "2d to one position": (nn.Conv2d(3, 4, (5, 6)), (3, 5, 6)),
    "2d to few positions": (nn.Conv2d(3, 4, (4, 3), dilation=(1, 2)), (3, 5, 6)),
    "2d to few, padded": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 4, 3)),
    "2d uneven": (nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(1, 2)), (3, 5, 8)),
    "2d same": (nn.Conv2d(3, 4, (2, 3), padding="same", dilation=(3, 1)), (3, 5, 6)),
    "2d valid": (nn.Conv2d(3, 4, 2, padding="valid"), (3, 5, 6)),
    "2d reflect": (nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="reflect"), (3, 5, 6)),
    "2d circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (3, 5, 6)),
    "2d grouped": (nn.Conv2d(6, 9, 3, groups=3), (6, 5, 6)),
    "2d depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (4, 5, 6)),
    "2d depthwise to few": (nn.Conv2d(4, 8, 3, groups=4), (4, 4, 4)),
    "3d": (nn.Conv3d(2, 3, 2, padding=(1, 0, 0)), (2, 3, 4, 3)),
    "3d grouped to few": (nn.Conv3d(2, 4, 2, groups=2), (2, 3, 2, 3)),
}


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    """A layer, what six samples give it, and a gradient at what it gives."""
    generator = torch.Generator().manual_seed(6)
    layer, shape = LAYERS[request.param]
    layer = copy.deepcopy(layer).double()
    inputs = torch.randn(6, *shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        outputs = layer(inputs)
    return layer, inputs, torch.randn(outputs.shape, generator=generator, dtype=torch.float64)


def naive(layer: nn.Module, inputs: Tensor, gradients: Tensor) -> Tensor:
    terms = []
    for sample, gradient in zip(inputs, gradients, strict=True):
        (own,) = torch.autograd.grad(layer(sample.unsqueeze(0)), layer.weight, gradient.unsqueeze(0))
        terms.append((layer.weight.detach() * own).square().flatten(1).sum(1))
    return torch.stack(terms)


def test_it_is_what_each_samples_own_weight_gradient_gives(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    torch.testing.assert_close(weight_terms(*case), naive(*case), rtol=1e-11, atol=1e-20)


def test_both_ways_of_computing_agree(case: tuple[nn.Module, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = weight_terms(*case)
    for few in (0, 10_000):
        monkeypatch.setattr(module, "FEW_POSITIONS", few)
        torch.testing.assert_close(weight_terms(*case), expected, rtol=1e-11, atol=1e-20)


def test_little_memory_changes_nothing(case: tuple[nn.Module, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = weight_terms(*case)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
    torch.testing.assert_close(weight_terms(*case), expected, rtol=1e-11, atol=1e-20)


def test_single_precision_stays_close(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    layer, inputs, gradients = case
    expected = weight_terms(*case)
    found = weight_terms(layer.float(), inputs.float(), gradients.float())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


def test_the_cases_cover_both_ways() -> None:
    positions = []
    for layer, shape in LAYERS.values():
        with torch.no_grad():
            outputs = layer(torch.zeros(1, *shape))
        positions.append(outputs.numel() // len(layer.weight))
    assert min(positions) == 1
    assert FEW_POSITIONS in positions
    assert sum(number > FEW_POSITIONS for number in positions) > 8
