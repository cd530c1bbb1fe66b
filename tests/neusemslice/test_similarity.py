"""The closed form against the scan as it is written."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neusemslice.errors import DatasetError
from neusemslice.similarity import centred_gram, cka_prefix, prefix_curves, working_bytes
from tests.neusemslice.memory import PeakMemory
from tests.reference import cka as reference

ESTIMATORS = ["unbiased", "biased"]
SHAPES = [(30, 8), (12, 40), (4, 3), (25, 6, 4), (10, 15, 7), (64, 3, 2), (9, 200), (6, 20, 40), (30, 15, 12)]


def random_features(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 3.0


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_scan(shape: tuple[int, ...], estimator: str) -> None:
    features = random_features(shape)
    order = torch.from_numpy(np.random.default_rng(1).permutation(shape[1]))
    expected = reference.cka_prefix(features.numpy(), order.numpy(), estimator)
    np.testing.assert_allclose(cka_prefix(features, order, estimator).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(20, 5), (8, 60), (8, 20, 6)])
def test_several_orders_at_once_are_the_same_curves(shape: tuple[int, ...]) -> None:
    features = random_features(shape)
    orders = [torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    alone = torch.stack([cka_prefix(features, order) for order in orders])
    torch.testing.assert_close(prefix_curves(features, orders), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", [*SHAPES, (300, 700, 1), (40, 600, 9), (64, 10, 200), (600, 40, 2), (20, 4, 900)])
def test_takes_no_more_memory_than_it_says(shape: tuple[int, ...], estimator: str) -> None:
    features = random_features(shape)
    orders = [torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    with PeakMemory(features) as memory:
        prefix_curves(features, orders, estimator)
    neurons, positions = shape[1], shape[2] if len(shape) == 3 else 1
    assert 0.1 < memory.peak / working_bytes(shape[0], neurons, positions) <= 1


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", [(12, 5, 3), (7, 40, 20), (30, 700, 1)])
def test_centred_gram_matrices_are_those_of_the_definition(shape: tuple[int, ...], estimator: str) -> None:
    features = random_features(shape)
    expected = reference.centred_gram(features.numpy(), estimator)
    np.testing.assert_allclose(centred_gram(features, estimator).numpy(), expected, rtol=0, atol=1e-10 * shape[1])


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(4, 20),
    neurons=st.integers(1, 30),
    positions=st.integers(1, 4),
    estimator=st.sampled_from(ESTIMATORS),
    seed=st.integers(0, 10_000),
)
def test_invariants(samples: int, neurons: int, positions: int, estimator: str, seed: int) -> None:
    """It ends at 1, and neither shift nor scale of the layer nor the order of samples or positions matters."""
    features = random_features((samples, neurons, positions), seed)
    curve = cka_prefix(features, None, estimator)
    assert curve[-1] == 1.0
    assert bool((curve <= 1 + 1e-9).all())
    if estimator == "biased":
        assert bool((curve >= 0).all())
    generator = torch.Generator().manual_seed(seed)
    shuffled = features[torch.randperm(samples, generator=generator)][
        ..., torch.randperm(positions, generator=generator)
    ]
    for same in (features * 7.0, features.double() + torch.arange(neurons)[:, None], shuffled):
        torch.testing.assert_close(cka_prefix(same, None, estimator), curve, rtol=0, atol=1e-5)


def test_the_curve_need_not_rise() -> None:
    """Neuron 0 is the layer's main direction, neuron 1 a strong one that only neuron 2 cancels."""
    generator = torch.Generator().manual_seed(0)
    signal, noise = torch.randn(2, 200, generator=generator, dtype=torch.float64)
    features = torch.stack([signal, noise, signal, signal, signal], dim=1)
    curve = cka_prefix(features)
    assert curve[1] < curve[0]
    np.testing.assert_allclose(curve.numpy(), reference.cka_prefix(features.numpy(), np.arange(5), "unbiased"))


def test_the_biased_estimator_inflates_where_samples_are_few() -> None:
    """One half of a layer of independent neurons says nothing about the other half; only one estimator notices."""
    features = random_features((50, 2000))
    half = features.clone()
    half[:, 1000:] = random_features((50, 1000), seed=9)
    biased = reference.cka(features[:, :1000].numpy(), half[:, 1000:].numpy(), "biased")
    unbiased = reference.cka(features[:, :1000].numpy(), half[:, 1000:].numpy(), "unbiased")
    assert biased > 0.9
    assert abs(unbiased) < 0.1
    assert cka_prefix(features, estimator="biased")[99] > cka_prefix(features)[99] + 0.05


def test_hand_computed() -> None:
    """Two orthogonal neurons of variance 1 and 4: biased CKA of the first with both is 1 / sqrt(1 * (1 + 16))."""
    features = torch.tensor([[1.0, 2.0], [1.0, -2.0], [-1.0, 2.0], [-1.0, -2.0]])
    assert cka_prefix(features, estimator="biased")[0].item() == pytest.approx(17**-0.5, abs=1e-12)


def test_neurons_that_do_not_vary_cover_nothing() -> None:
    features = random_features((20, 4))
    features[:, :2] = torch.tensor([0.1, 7.3])
    curve = cka_prefix(features)
    assert curve[:2].tolist() == [0.0, 0.0]
    assert curve[2] > 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_layer_that_does_not_vary_is_covered_by_anything(estimator: str) -> None:
    assert cka_prefix(torch.full((10, 3), 0.1), None, estimator).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("estimator", "samples"), [("unbiased", 3), ("biased", 1)])
def test_too_few_samples_are_refused(estimator: str, samples: int) -> None:
    with pytest.raises(DatasetError, match=f"at least {samples + 1} samples, and there are {samples}"):
        cka_prefix(torch.zeros(samples, 2), None, estimator)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    features = random_features((10, 3))
    features[4, 1] = value
    with pytest.raises(DatasetError, match="not finite"):
        cka_prefix(features)
