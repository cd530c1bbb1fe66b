"""Attacks against hand-computed changes, a naive reference, and captum where captum is right."""

import math

import captum.robust
import numpy as np
import pytest
import torch
from torch import nn

from neusemslice.data import Preprocess
from neusemslice.errors import ConfigError, DatasetError, StoppedError
from neusemslice.progress import Progress
from neusemslice.readaptation.attacks import attack
from neusemslice.readaptation.valid_range import ValidRange
from neusemslice.readaptation_config import AttackConfig
from neusemslice.training import InMemory
from tests.neusemslice.networks import functional, mlp, vgg_like
from tests.reference import attacks as reference

WIDE = ValidRange(torch.tensor([-10.0] * 3), torch.tensor([10.0] * 3))


def linear(weights: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weights[0]), len(weights), bias=False)
    layer.weight.data = torch.tensor(weights)
    return layer


def images(count: int = 12, seed: int = 0) -> InMemory:
    generator = torch.Generator().manual_seed(seed)
    return InMemory(torch.randn(count, 2, 12, 12, generator=generator), torch.arange(count) % 3)


def image_range() -> ValidRange:
    return ValidRange(torch.tensor([-1.0, -2.0]), torch.tensor([1.5, 3.0]))


def test_fgsm_of_a_linear_network_by_hand() -> None:
    """The loss for category 0 grows along w1 - w0 = (-2, 0, 1): values move by epsilon of their channel's range."""
    network = linear([[1.0, 2.0, 0.0], [-1.0, 2.0, 1.0]])
    samples = InMemory(torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.5, 0.0]]), torch.tensor([0, 1]))
    valid = ValidRange(torch.tensor([-1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 4.0]))
    found = attack(network, samples, AttackConfig(epsilons=(0.1,)), valid, seed=0)
    torch.testing.assert_close(found.inputs, torch.tensor([[-0.2, 0.5, 0.4], [0.2, 0.5, 0.0]]))
    assert torch.equal(found.labels, samples.labels)


def test_fgsm_of_length_two_goes_straight_up_the_gradient() -> None:
    network = linear([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
    samples = InMemory(torch.zeros(1, 3), torch.tensor([0]))
    valid = ValidRange(torch.full((3,), -2.0), torch.full((3,), 2.0))
    found = attack(network, samples, AttackConfig(epsilons=(0.25,), norm="2"), valid, seed=0)
    torch.testing.assert_close(found.inputs, torch.tensor([[0.6, 0.0, 0.8]]))


def test_pgd_of_a_linear_network_by_hand() -> None:
    """Three steps of 0.4 epsilon end at the bound, one ends at 0.4 epsilon."""
    network, samples = linear([[0.0, 0.0, 0.0], [1.0, -1.0, 0.0]]), InMemory(torch.zeros(1, 3), torch.tensor([0]))
    for steps, reached in ((1, 0.8), (3, 2.0)):
        config = AttackConfig(method="pgd", epsilons=(0.1,), steps=steps, step=0.4, random_start=False)
        found = attack(network, samples, config, WIDE, seed=0)
        torch.testing.assert_close(found.inputs, torch.tensor([[reached, -reached, 0.0]]))


def test_values_are_clipped_channel_by_channel_and_may_stay_where_they_are() -> None:
    """The first value would leave its range, the second lies outside it already, the third channel has no range."""
    network = linear([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    samples = InMemory(torch.tensor([[0.9, 1.3, 0.0]]), torch.tensor([0]))
    valid = ValidRange(torch.tensor([-1.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
    for method in ("fgsm", "pgd"):
        found = attack(network, samples, AttackConfig(method=method, epsilons=(0.5,)), valid, seed=0)
        assert found.inputs[0, 0] == 1
        assert found.inputs[0, 1] == torch.tensor(1.3)
        assert found.inputs[0, 2] == 0


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_every_value_is_that_of_the_naive_reference(method: str, norm: str) -> None:
    network, samples = vgg_like(nn.SiLU).double(), images(3)
    samples = InMemory(samples.inputs.double().clamp(-1, 1.5), samples.labels)
    valid = image_range()
    config = AttackConfig(method=method, norm=norm, epsilons=(0.05, 0.2), steps=4, step=0.4, random_start=False)
    found = attack(network, samples, config, valid, seed=0)
    low, high = (bound.double().view(2, 1, 1).expand(2, 12, 12).numpy() for bound in (valid.low, valid.high))
    for number, (sample, label) in enumerate(zip(samples.inputs, samples.labels, strict=True)):

        def loss(x: np.ndarray, label: torch.Tensor = label) -> float:
            with torch.no_grad():
                logits = network(torch.from_numpy(x)[None])
            return float(nn.functional.cross_entropy(logits, label[None]))

        epsilon, x = config.epsilons[number % 2], sample.numpy()
        expected = (
            reference.fgsm(loss, x, epsilon, low, high, norm)
            if method == "fgsm"
            else reference.pgd(loss, x, x, epsilon, 0.4, 4, low, high, norm)
        )
        torch.testing.assert_close(found.inputs[number], torch.from_numpy(expected), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_captum_agrees_where_all_channels_have_one_range() -> None:
    network, samples = vgg_like(), images()
    samples = InMemory(samples.inputs.clamp(-2, 2), samples.labels)
    valid = ValidRange(torch.full((2,), -2.0), torch.full((2,), 2.0))
    loss = nn.CrossEntropyLoss(reduction="none")
    fgsm = captum.robust.FGSM(network, loss, -2, 2)
    fgsm.zero_thresh = 0
    theirs = fgsm.perturb(samples.inputs.clone(), 0.2, samples.labels)
    ours = attack(network, samples, AttackConfig(epsilons=(0.05,)), valid, seed=0)
    torch.testing.assert_close(ours.inputs, theirs.detach())
    pgd = captum.robust.PGD(network, loss, -2, 2)
    pgd.fgsm.zero_thresh = 0
    theirs = pgd.perturb(samples.inputs.clone(), 0.2, 0.05, 5, samples.labels)
    config = AttackConfig(method="pgd", epsilons=(0.05,), steps=5, step=0.25, random_start=False)
    ours = attack(network, samples, config, valid, seed=0)
    torch.testing.assert_close(ours.inputs, theirs.detach())


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_the_bound_holds_and_the_loss_rises(norm: str) -> None:
    network, samples, valid = vgg_like(), images(30), image_range()
    samples = InMemory(samples.inputs.clamp(-1, 1.5), samples.labels)
    unit = (valid.high - valid.low).view(2, 1, 1)
    epsilon = 0.03 if norm == "inf" else 0.5

    def loss(inputs: torch.Tensor) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(network(inputs), samples.labels))

    reached = [loss(samples.inputs)]
    for method in ("fgsm", "pgd"):
        found = attack(network, samples, AttackConfig(method=method, norm=norm, epsilons=(epsilon,)), valid, seed=0)
        changes = ((found.inputs - samples.inputs) / unit).flatten(1)
        assert float(torch.linalg.vector_norm(changes, float(norm), dim=1).max()) <= epsilon * (1 + 1e-5)
        reached.append(loss(found.inputs))
    assert reached == sorted(reached)


@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_a_sample_does_not_depend_on_what_is_attacked_beside_it(method: str) -> None:
    network, samples = vgg_like(), images(13)
    config = AttackConfig(method=method, epsilons=(0.02, 0.1), steps=3)
    whole = attack(network, samples, config, image_range(), seed=4)
    parts = attack(network, samples, config, image_range(), seed=4, at_once=5)
    torch.testing.assert_close(whole.inputs, parts.inputs, rtol=0, atol=1e-5)


def test_random_starts_come_from_the_seed_and_fill_the_ball() -> None:
    """Without a gradient the start is the result."""
    network = linear([[0.0] * 3] * 2)
    samples = InMemory(torch.zeros(400, 3), torch.zeros(400, dtype=torch.long))
    for norm in ("inf", "2"):
        config = AttackConfig(method="pgd", epsilons=(0.1,), norm=norm, steps=1)
        one, two = (attack(network, samples, config, WIDE, seed=seed).inputs / 20 for seed in (1, 2))
        assert torch.equal(one, attack(network, samples, config, WIDE, seed=1).inputs / 20)
        assert not torch.equal(one, two)
        lengths = torch.linalg.vector_norm(one, float(norm), dim=1)
        assert float(lengths.max()) <= 0.1 * (1 + 1e-6)
        assert float(one.mean()) == pytest.approx(0, abs=0.01)
        assert float((lengths / 0.1).pow(3).mean()) == pytest.approx(0.5, abs=0.05)  # even over the volume
        fixed = AttackConfig(method="pgd", epsilons=(0.1,), norm=norm, steps=1, random_start=False)
        assert not attack(network, samples, fixed, WIDE, seed=1).inputs.any()


def test_strengths_take_turns() -> None:
    network = linear([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    samples = InMemory(torch.zeros(5, 3), torch.zeros(5, dtype=torch.long))
    found = attack(network, samples, AttackConfig(epsilons=(0.1, 0.2)), WIDE, seed=0, at_once=3)
    torch.testing.assert_close(found.inputs[:, 0], torch.tensor([2.0, 4.0, 2.0, 4.0, 2.0]))


def test_the_network_is_left_as_it_was() -> None:
    network = vgg_like().train()
    network[1].eval()
    network.requires_grad_(requires_grad=True)
    network[0].weight.grad = torch.ones_like(network[0].weight)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    samples = images()
    kept = samples.inputs.clone()
    attack(network, samples, AttackConfig(method="pgd"), image_range(), seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert [network.training, network[1].training] == [True, False]
    assert torch.equal(network[0].weight.grad, torch.ones_like(network[0].weight))
    assert network[4].weight.grad is None
    assert torch.equal(samples.inputs, kept)
    assert not samples.inputs.requires_grad


def test_an_attack_works_where_gradients_are_off() -> None:
    with torch.no_grad():
        found = attack(mlp(), InMemory(torch.zeros(2, 6), torch.tensor([0, 1])), AttackConfig(), six(), seed=0)
    assert found.inputs.any()
    assert not found.inputs.requires_grad


def six() -> ValidRange:
    return ValidRange(torch.zeros(6), torch.ones(6))


def test_probabilities_are_attacked_like_their_logits() -> None:
    samples = InMemory(torch.rand(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3)
    config = AttackConfig(method="pgd", steps=3)
    plain = attack(mlp(), samples, config, six(), seed=0)
    softmax = attack(nn.Sequential(*mlp(), nn.Softmax(1)), samples, config, six(), seed=0)
    torch.testing.assert_close(plain.inputs, softmax.inputs)
    assert attack(functional(), images(4), config, image_range(), seed=0).inputs.isfinite().all()


def test_an_output_that_is_not_finite_is_refused() -> None:
    network = linear([[math.nan] * 3] * 2)
    with pytest.raises(DatasetError, match="NaN or infinite"):
        attack(network, InMemory(torch.zeros(1, 3), torch.tensor([0])), AttackConfig(), WIDE, seed=0)


def test_a_range_of_other_channels_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of 3 channels"):
        attack(vgg_like(), images(2), AttackConfig(), WIDE, seed=0)


def test_an_attack_can_be_stopped_and_tells_where_it_is() -> None:
    told: list[tuple[str, int, int]] = []
    progress = Progress(lambda *where: told.append(where), lambda: len(told) > 1)
    with pytest.raises(StoppedError):
        attack(vgg_like(), images(9), AttackConfig(), image_range(), seed=0, at_once=4, progress=progress)
    assert told == [("attack", 0, 9), ("attack", 4, 9)]


def test_the_range_of_stored_values_by_hand() -> None:
    preprocess = Preprocess(scale=1 / 255, mean=(0.5, 0.25), std=(0.5, 0.25))
    found = ValidRange.of_stored((0.0, 255.0), preprocess, 2)
    torch.testing.assert_close(found.low, torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(found.high, torch.tensor([1.0, 3.0]))
    assert ValidRange.of_stored((0.0, 16.0), Preprocess(), 3).high.tolist() == [16, 16, 16]


def test_the_range_that_samples_show() -> None:
    samples = InMemory(
        torch.tensor([[[[1.0, 2.0]], [[-3.0, 0.0]]], [[[5.0, 0.5]], [[-1.0, 4.0]]]]), torch.zeros(2).long()
    )
    found = ValidRange.seen_in(samples)
    assert (found.low.tolist(), found.high.tolist()) == ([0.5, -3.0], [5.0, 4.0])


@pytest.mark.parametrize("value_range", [(1.0, 1.0), (2.0, 1.0), (0.0,), (math.nan, 1.0)])
def test_what_is_no_range_is_refused(value_range: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="is no range"):
        ValidRange.of_stored(value_range, Preprocess(), 1)


def test_a_range_that_cannot_be_is_refused() -> None:
    for low, high in (([0.0], [1.0, 2.0]), ([1.0], [0.0]), ([0.0], [math.inf])):
        with pytest.raises(ConfigError, match="valid range goes from"):
            ValidRange(torch.tensor(low), torch.tensor(high))
