"""Conductance and integrated gradients: against their formulas and captum layer by layer; no hook is left behind."""

from collections.abc import Iterator
from itertools import chain

import pytest
import torch
from captum.attr import LayerConductance
from torch import Tensor, nn

from neusemslice.contribution import attributions, score_many, score_neurons
from neusemslice.contribution.attributions import (
    CONDUCTANCE_STEPS,
    INTEGRATION_STEPS,
    METHODS,
    Conductance,
    IntegratedGradients,
    logits_network,
)
from neusemslice.errors import ConfigError, DatasetError, StoppedError
from neusemslice.tracing import SliceableModel, trace
from tests.neusemslice.graphs import GRAPHS, graph
from tests.neusemslice.networks import functional, randomised, vgg_like
from tests.reference.attributions import conductance, integrated_gradients

METRICS = tuple(METHODS)
TARGETS = torch.tensor([2, 0, 1])


def smooth() -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3))
    return randomised(layers).double()


def draw(*shape: int) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("cut", [1, 3])
def test_both_are_their_formulas_on_the_quadratures_points(cut: int) -> None:
    """captum keeps the quadrature's weights in single precision."""
    network, inputs, baseline = smooth(), draw(4), draw(4)[0] / 2
    model = trace(network, inputs)
    head, tail = network[: cut + 1], network[cut + 1 :]
    name = str(cut - 1)
    for method, formula, steps in (
        (Conductance, conductance, CONDUCTANCE_STEPS),
        (IntegratedGradients, integrated_gradients, INTEGRATION_STEPS),
    ):
        found = method(model, baseline.unsqueeze(0)).contributions(inputs, TARGETS)[name]
        for row, (sample, target) in enumerate(zip(inputs, TARGETS.tolist(), strict=True)):
            expected = formula(head, tail, sample, baseline, target, steps)
            assert torch.allclose(found[row], expected, rtol=1e-6, atol=1e-8)


def test_the_neurons_of_a_layer_share_the_change_of_the_logit() -> None:
    """On smooth networks; conductance up to the length of its steps."""
    model, inputs, baseline = trace(smooth(), draw(4)), draw(4), torch.zeros(1, 4, dtype=torch.float64)
    change = (model(inputs) - model(baseline)).gather(1, TARGETS.unsqueeze(1))[:, 0]
    for values in IntegratedGradients(model, baseline).contributions(inputs, TARGETS).values():
        assert torch.allclose(values.sum(1), change, rtol=1e-6)
    for values in Conductance(model, baseline).contributions(inputs, TARGETS).values():
        assert torch.allclose(values.sum(1), change, rtol=0, atol=0.03 * float(change.abs().max()))


@pytest.mark.parametrize("name", [*GRAPHS, "functional"])
def test_conductance_of_all_layers_at_once_is_captums_layer_by_layer(name: str) -> None:
    shape = (2, 12, 12) if name == "functional" else GRAPHS[name][1]
    network = functional() if name == "functional" else graph(name)
    inputs, baseline = draw(*shape), torch.full((1, *shape), 0.1, dtype=torch.float64)
    model = trace(network.double(), inputs)
    found = Conductance(model, baseline).contributions(inputs, TARGETS)
    alone = logits_network(model)
    for layer in model.sliceable_layers:
        expected = LayerConductance(alone, alone.get_submodule(layer.read_node)).attribute(
            inputs, baselines=baseline, target=TARGETS, n_steps=CONDUCTANCE_STEPS
        )
        summed = layer.per_neuron(expected.detach()).sum(2)
        assert torch.allclose(found[layer.name], summed, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_memory_that_allows_few_points_at_once_changes_nothing(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = trace(vgg_like().double(), draw(2, 12, 12)), draw(2, 12, 12)
    baseline = torch.zeros(1, 2, 12, 12, dtype=torch.float64)
    whole = METHODS[metric](model, baseline).contributions(inputs, TARGETS)
    for bytes_allowed in (1, 2_000_000):
        monkeypatch.setattr(attributions, "_BUDGET_BYTES", bytes_allowed)
        parts = METHODS[metric](model, baseline).contributions(inputs, TARGETS)
        for layer, values in whole.items():
            assert torch.allclose(parts[layer], values, rtol=1e-9, atol=1e-12)


def test_a_trailing_softmax_is_left_out() -> None:
    inputs, baseline = draw(4), torch.zeros(1, 4, dtype=torch.float64)
    plain, headed = smooth(), nn.Sequential(*smooth(), nn.Softmax(1))
    for method in METHODS.values():
        one, other = (method(trace(net, inputs), baseline).contributions(inputs, TARGETS) for net in (plain, headed))
        for layer, values in one.items():
            assert torch.equal(other[layer], values)


def hooks(model: SliceableModel) -> Iterator[object]:
    for module in model.graph_module.modules():
        yield from chain(module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)


@pytest.mark.parametrize("metric", METRICS)
def test_no_hook_stays_behind(metric: str) -> None:
    model, data = trace(smooth(), draw(4)), [(draw(4), TARGETS)]
    score_neurons(model, data, metric)
    with pytest.raises(StoppedError):
        score_neurons(model, data, metric, should_stop=iter([False, True]).__next__)
    with pytest.raises(DatasetError):
        score_neurons(model, [(draw(4) * torch.inf, TARGETS)], metric)
    assert not list(hooks(model))
    assert all(parameter.grad is None for parameter in model.graph_module.parameters())


@pytest.mark.parametrize("regression", [False, True])
def test_progress_moves_within_a_batch(monkeypatch: pytest.MonkeyPatch, *, regression: bool) -> None:
    """One batch and three metrics: hundredths of it, in order, and a stop is heeded between two samples."""
    monkeypatch.setattr(attributions, "_BUDGET_BYTES", 1)
    model, seen = trace(smooth(), draw(4)), []
    data = [(draw(4), draw(3) if regression else TARGETS)]
    metrics = ["avg", *METRICS]
    score_many(model, data, metrics, on_progress=lambda *step: seen.append(step))
    assert {(stage, total) for stage, _, total in seen} == {("score", 100)}
    done = [step[1] for step in seen]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 100)
    for third in (1, 2):  # the first is avg, in one step
        assert sum(third < 3 * number / 100 < third + 1 for number in done) >= 2
    answers = iter([False, False, True])
    with pytest.raises(StoppedError):
        score_many(model, data, metrics, should_stop=answers.__next__)
    assert not list(hooks(model))


@pytest.mark.parametrize("metric", [*METRICS, "deeplift"])
def test_the_baseline_itself_contributes_nothing(metric: str) -> None:
    model, baseline = trace(smooth(), draw(4)), draw(4)[0]
    same = baseline.expand(3, 4).clone()
    at_it = score_neurons(model, [(same, TARGETS)], metric, baseline=baseline)
    from_zero = score_neurons(model, [(same, TARGETS)], metric)
    for layer, scores in at_it.items():
        assert float(scores.abs().max()) < 1e-12
        assert float(from_zero[layer].max()) > 1e-2
    batch_of_one = score_neurons(model, [(draw(4), TARGETS)], metric, baseline=baseline.unsqueeze(0))
    plain = score_neurons(model, [(draw(4), TARGETS)], metric, baseline=baseline)
    assert torch.equal(batch_of_one["0"], plain["0"])


def test_a_baseline_that_does_not_fit_is_refused() -> None:
    model, data = trace(smooth(), draw(4)), [(draw(4), TARGETS)]
    with pytest.raises(ConfigError, match=r"taylor compares with none.*deeplift, conductance, integrated_gradients"):
        score_neurons(model, data, "taylor", baseline=torch.zeros(4))
    with pytest.raises(DatasetError, match=r"\(5,\).*\(4,\)"):
        score_neurons(model, data, "conductance", baseline=torch.zeros(5))
