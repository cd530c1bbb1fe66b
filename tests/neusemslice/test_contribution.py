"""Scores of all neurons: each metric against an oracle, and what must not change them."""

from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from neusemslice.config import MetricName
from neusemslice.contribution import METRICS, Contributions, deeplift_contributions, score_many, score_neurons
from neusemslice.contribution.moments import Moments
from neusemslice.copying import copy_graph
from neusemslice.errors import ConfigError, DatasetError, StoppedError
from neusemslice.tracing import SliceableLayer, SliceableModel, trace
from tests.neusemslice.graphs import GRAPHS, graph
from tests.neusemslice.networks import mlp, randomised, vgg_like
from tests.reference.taylor import cross_entropy, loss_slopes, per_category, squared_error, weight_terms

COUNTS = (17, 9, 4)


def samples(*shape: int) -> tuple[Tensor, Tensor]:
    """Unbalanced categories in mixed order."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    return torch.randn(len(labels), *shape, generator=generator) + labels.view(-1, *[1] * len(shape)), labels


def in_batches(data: tuple[Tensor, Tensor], size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    return vgg_like().double()


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    return samples(2, 12, 12)


@pytest.fixture(scope="module")
def model(network: nn.Sequential) -> SliceableModel:
    return trace(network, torch.zeros(1, 2, 12, 12))


CUTS = {"0": 2, "4": 8, "10": 11}
"""Layer -> the module after which it is read. Layer 4 is read behind a flatten that gives each neuron 4 positions."""


def read_values(network: nn.Sequential, data: tuple[Tensor, Tensor], layer: str) -> Tensor:
    with torch.no_grad():
        values = network[: CUTS[layer] + 1](data[0].double())
    return values.reshape(len(values), network[int(layer)].weight.shape[0], -1).mean(2)


@pytest.mark.parametrize("layer", CUTS)
def test_avg_and_var_are_the_plain_statistics_of_each_category(
    model: SliceableModel, network: nn.Sequential, data: tuple[Tensor, Tensor], layer: str
) -> None:
    values = read_values(network, data, layer)
    avg, var = (score_neurons(model, in_batches(data, 7), metric) for metric in ("avg", "var"))
    for category in range(3):
        own = values[data[1] == category]
        assert torch.allclose(avg[layer][category], own.mean(0), rtol=1e-12)
        assert torch.allclose(var[layer][category], own.var(0, correction=0), rtol=1e-10)
    assert torch.allclose(avg.overall[layer], values.mean(0), rtol=1e-12)
    assert torch.allclose(var.overall[layer], values.var(0, correction=0), rtol=1e-10)
    assert avg.counts.tolist() == list(COUNTS)


def test_ens_averages_the_two_on_a_common_scale(model: SliceableModel, data: tuple[Tensor, Tensor]) -> None:
    avg, var, ens = (score_neurons(model, in_batches(data, 7), metric) for metric in ("avg", "var", "ens"))
    for layer, scores in ens.items():
        for category in range(3):
            scaled = [
                (own - own.min()) / (own.max() - own.min()) for own in (avg[layer][category], var[layer][category])
            ]
            assert torch.allclose(scores[category], sum(scaled) / 2, rtol=1e-12)


def test_ens_of_a_layer_whose_neurons_agree_is_zero() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    nn.init.constant_(network[0].weight, 0.25)
    nn.init.constant_(network[0].bias, 0.125)
    inputs, labels = samples(4)
    found = score_neurons(trace(network, torch.zeros(1, 4)), [(inputs.round(), labels)], "ens")
    assert torch.equal(found["0"], torch.zeros(3, 5, dtype=torch.float64))


def halves(network: nn.Sequential, layer: str) -> tuple[nn.Module, nn.Module]:
    """The network up to the place where the layer is read, with a channel for each neuron there, and the rest."""
    head: nn.Module = network[: CUTS[layer] + 1]
    tail: nn.Module = network[CUTS[layer] + 1 :]
    if layer == "4":
        return nn.Sequential(head, nn.Unflatten(1, (-1, 4))), nn.Sequential(nn.Flatten(), tail)
    return head, tail


@pytest.mark.parametrize("layer", CUTS)
def test_taylor_squares_the_answer_of_the_loss_to_the_neurons_scale(
    model: SliceableModel, network: nn.Sequential, data: tuple[Tensor, Tensor], layer: str
) -> None:
    """taylor for each sample, taylor_summed for the category as a whole."""
    slopes = loss_slopes(*halves(network, layer), data, cross_entropy)
    found = score_many(model, in_batches(data, 7), ["taylor", "taylor_summed"])
    squares = per_category(slopes, data[1], lambda own: own.square().mean(0))
    sums = per_category(slopes, data[1], lambda own: own.mean(0).square())
    assert torch.allclose(found["taylor"][layer], squares, rtol=1e-5, atol=1e-12)
    assert torch.allclose(found["taylor_summed"][layer], sums, rtol=1e-4, atol=1e-12)
    assert torch.allclose(found["taylor_summed"].overall[layer], slopes.mean(0).square(), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("layer", CUTS)
def test_taylor_weight_is_made_of_each_samples_own_weight_gradient(
    model: SliceableModel, network: nn.Sequential, data: tuple[Tensor, Tensor], layer: str
) -> None:
    terms = weight_terms(network, layer, data, cross_entropy)
    found = score_neurons(model, in_batches(data, 7), "taylor_weight")
    expected = per_category(terms, data[1], lambda own: own.mean(0))
    assert torch.allclose(found[layer], expected, rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("name", GRAPHS)
def test_gradient_metrics_follow_branches_joins_groups_and_tokens(name: str) -> None:
    data = samples(*GRAPHS[name][1])
    model = trace(graph(name).double(), data[0].double())
    learning = copy_graph(model.graph_module).requires_grad_()
    found = score_many(model, in_batches(data, 9), ["taylor", "taylor_weight"])
    for layer in model.sliceable_layers:
        expected = per_category(gate_slopes(model, layer, data).square(), data[1], lambda own: own.mean(0))
        assert torch.allclose(found["taylor"][layer.name], expected, rtol=1e-8, atol=1e-18)
        terms = weight_terms(learning, layer.name, data, cross_entropy)
        if layer.name == "attention.in_proj":  # a head has rows for its queries, its keys and its contents
            terms = terms.view(len(terms), 3, layer.neurons, -1).sum((1, 3))
        expected = per_category(terms, data[1], lambda own: own.mean(0))
        assert torch.allclose(found["taylor_weight"][layer.name], expected, rtol=1e-8, atol=1e-18)


def gate_slopes(model: SliceableModel, layer: SliceableLayer, data: tuple[Tensor, Tensor]) -> Tensor:
    """dL/ds for a factor s of each neuron, laid on the output of the read place."""
    gates = torch.ones(len(data[0]), layer.neurons, dtype=torch.float64, requires_grad=True)

    def lay(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        first = output.movedim(layer.axis, 1)
        return (layer.per_neuron(output) * gates.unsqueeze(2)).reshape(first.shape).movedim(1, layer.axis)

    handle = model.graph_module.get_submodule(layer.read_node).register_forward_hook(lay)
    logits = model(data[0].double())
    handle.remove()
    losses = nn.functional.cross_entropy(logits, data[1], reduction="sum")
    return torch.autograd.grad(losses, gates)[0]


def test_deeplift_is_the_absolute_mean_over_the_category(model: SliceableModel, data: tuple[Tensor, Tensor]) -> None:
    """The sum before the absolute value is the mean change of the logit, by completeness."""
    found = deeplift_contributions(model, data[0].double(), data[1])
    scores = score_neurons(model, in_batches(data, 7), "deeplift")
    for layer, values in found.items():
        for category in range(3):
            expected = values[data[1] == category].mean(0).abs()
            assert torch.allclose(scores[layer][category], expected, rtol=1e-9, atol=1e-14)
        assert torch.allclose(scores.overall[layer], values.mean(0).abs(), rtol=1e-9, atol=1e-14)


ALONG_PATHS = ("conductance", "integrated_gradients")
"""Metrics that take many passes of each sample."""


@pytest.mark.parametrize("metric", METRICS)
def test_neither_batch_size_nor_order_matter(model: SliceableModel, data: tuple[Tensor, Tensor], metric: str) -> None:
    whole = score_neurons(model, [data], metric)
    turned = (data[0].flip(0), data[1].flip(0))
    sizes = [11] if metric in ALONG_PATHS else [1, 11]
    for other in (*(in_batches(data, size) for size in sizes), in_batches(turned, 8)):
        found = score_neurons(model, other, metric)
        for layer in whole:
            assert torch.allclose(found[layer], whole[layer], rtol=1e-9, atol=1e-14)
            assert torch.allclose(found.overall[layer], whole.overall[layer], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("metric", METRICS)
def test_float32_gives_the_same_scores_to_its_precision(metric: str, data: tuple[Tensor, Tensor]) -> None:
    example = torch.zeros(1, 2, 12, 12)
    single, double = (score_neurons(trace(net, example), [data], metric) for net in (vgg_like(), vgg_like().double()))
    for layer in double:
        assert torch.allclose(single[layer], double[layer], rtol=1e-3, atol=1e-5 * float(double[layer].max()))


def test_moments_of_two_halves_merge_to_those_of_the_whole() -> None:
    values, labels = samples(6)
    values = values + 1e4
    whole = Moments.of(values, labels, 3)
    merged = Moments.of(values[:13], labels[:13], 3).merge(Moments.of(values[13:], labels[13:], 3))
    assert torch.equal(merged.counts, whole.counts)
    assert torch.allclose(merged.mean, whole.mean, rtol=1e-14)
    assert torch.allclose(merged.variance, whole.variance, rtol=1e-9)
    only_first = Moments.of(values[labels == 0], labels[labels == 0], 3)
    without = Moments.of(values[labels != 0], labels[labels != 0], 3)
    assert torch.allclose(only_first.merge(without).mean, whole.mean, rtol=1e-14)
    assert torch.allclose(whole.overall().variance[0], values.double().var(0, correction=0), rtol=1e-9)


def test_one_pass_over_data_that_can_be_read_once(model: SliceableModel, data: tuple[Tensor, Tensor]) -> None:
    def once() -> Iterator[tuple[Tensor, Tensor]]:
        yield from in_batches(data, 10)

    assert torch.equal(score_neurons(model, once(), "avg")["0"], score_neurons(model, in_batches(data, 10), "avg")["0"])


def test_the_result_is_a_read_only_mapping_in_forward_order(model: SliceableModel, data: tuple[Tensor, Tensor]) -> None:
    found = score_neurons(model, [data], "avg")
    assert isinstance(found, Contributions)
    assert list(found) == ["0", "4", "10"]
    assert [tuple(scores.shape) for scores in found.values()] == [(3, 6), (3, 5), (3, 8)]
    assert {scores.dtype for scores in found.values()} == {torch.float64}
    with pytest.raises(TypeError):
        found.overall["0"] = torch.zeros(6)


def test_metrics_are_those_of_the_config() -> None:
    assert tuple(METRICS) == tuple(sorted(METRICS, key=get_args(MetricName).index))
    assert set(METRICS) == set(get_args(MetricName))


def test_the_model_gets_no_gradients_and_stays_as_it_is(model: SliceableModel, data: tuple[Tensor, Tensor]) -> None:
    before = {name: tensor.clone() for name, tensor in model.graph_module.state_dict().items()}
    inputs = data[0].clone()
    for metric in METRICS:
        score_neurons(model, [data], metric)
    assert all(parameter.grad is None for parameter in model.graph_module.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.graph_module.state_dict().items())
    assert torch.equal(inputs, data[0])
    assert data[0].grad is None
    assert not data[0].requires_grad


def test_progress_and_stopping(model: SliceableModel, data: tuple[Tensor, Tensor]) -> None:
    seen: list[tuple[str, int, int]] = []
    score_neurons(model, in_batches(data, 10), "avg", on_progress=lambda *step: seen.append(step))
    assert seen == [("score", 0, 3), ("score", 1, 3), ("score", 2, 3), ("score", 3, 3)]
    answers = iter([False, True])
    with pytest.raises(StoppedError, match="after 1 of 3"):
        score_neurons(model, in_batches(data, 10), "avg", should_stop=lambda: next(answers))
    seen.clear()
    score_neurons(model, iter(in_batches(data, 15)), "avg", on_progress=lambda *step: seen.append(step))
    assert seen == [("score", 0, 1), ("score", 1, 1), ("score", 2, 2)]


def broken(model: SliceableModel) -> SliceableModel:
    """The same model with a weight that makes its outputs infinite."""
    copied = model.to("cpu")
    copied.graph_module.get_parameter("12.bias").fill_(torch.inf)
    return copied


X, Y = samples(2, 12, 12)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no"),
        ([(X[:0], Y[:0])], "no samples"),
        ([(X, Y), (X, Y + 1)], r"(?s)batch 1.* 3.*categories 0 to 2"),
        ([(X, Y - 1)], r"(?s)batch 0.* -1"),
        ([(X[:, :, :11], Y)], r"(?s)11, 12\).*\(2, 12, 12\)"),
        ([(X[Y != 2], Y[Y != 2])], r"no samples of category 2 \(of 3\)"),
        ([(X, Y.float())], r"float32.*targets of a regression.*3 outputs"),
        ([(X, torch.zeros(30, 2))], r"\(30, 2\).*3 outputs"),
        ([(X, torch.full((30, 3), torch.nan))], "targets of batch 0 hold NaN"),
        ([(X, Y), (X, torch.zeros(30, 3))], "(?s)batch 1.*float64.*first batch torch.int64"),
        ([(X, torch.zeros(30, 3)), (X, Y)], "(?s)batch 1.*int64.*first batch torch.float64"),
        ([(X, Y[1:])], "(?i)labels"),
        ([X], "pair"),
        ([(X * torch.nan, Y)], "NaN or infinite"),
    ],
    ids=[
        "none",
        "empty",
        "above",
        "below",
        "shape",
        "missing",
        "float",
        "outputs",
        "nan target",
        "mixed",
        "mixed back",
        "lengths",
        "no pair",
        "nan",
    ],
)
def test_data_that_does_not_fit_is_refused(model: SliceableModel, batches: list[object], message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        score_neurons(model, batches, "avg")
    assert caught.value.hint


@pytest.mark.parametrize("metric", METRICS)
def test_outputs_that_are_not_finite_are_refused(
    model: SliceableModel, data: tuple[Tensor, Tensor], metric: str
) -> None:
    with pytest.raises(DatasetError, match="NaN or infinite"):
        score_neurons(broken(model), [data], metric)


def test_an_unknown_metric_is_refused(model: SliceableModel, data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ConfigError, match=r"'tailor' is unknown.*avg, var, ens, deeplift, taylor"):
        score_neurons(model, [data], "tailor")


def test_a_layer_without_activation_between_producers_is_read_at_the_producer() -> None:
    network = randomised(nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))
    inputs, labels = samples(4)
    found = score_neurons(trace(network, inputs), [(inputs, labels)], "avg")
    with torch.no_grad():
        expected = network[0](inputs)[labels == 1].double().mean(0)
    assert torch.allclose(found["0"][1], expected, rtol=1e-6)


def test_mlp_takes_flat_samples() -> None:
    found = score_neurons(trace(mlp(), torch.zeros(1, 6)), [samples(6)], "deeplift")
    assert [tuple(scores.shape) for scores in found.values()] == [(3, 9), (3, 7)]


@pytest.mark.parametrize("factor", [1.0, 20.0, 60.0])
def test_taylor_keeps_its_digits_when_the_network_is_sure(factor: float) -> None:
    """In float32, p - 1 of a sure network is rounded to 0; the float64 derivatives by hand say what it should be.

    Two categories that differ by one linear function z of the hidden values: dL/dz = -1 / (1 + exp(z)) for the first.
    """
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator))
        network[2].weight[1] = 0.0
        network[2].weight[0] *= factor
    inputs, labels = torch.rand(10, 3, generator=generator), torch.tensor([0, 1] * 5)
    scores = score_many(trace(network, inputs), [(inputs, labels)], ["taylor", "taylor_summed", "taylor_weight"])
    double = network.double()
    with torch.no_grad():
        hidden = double[1](double[0](inputs.double()))
        logits = double[2](hidden)
        z = logits[:, 0] - logits[:, 1]
        slope = torch.where(labels == 0, -torch.sigmoid(-z), torch.sigmoid(z))
        terms = slope.unsqueeze(1) * hidden * double[2].weight[0]
        through = (slope.unsqueeze(1) * (hidden > 0) * double[2].weight[0]).square()
        through_weights = through * (inputs.double().square() @ double[0].weight.square().T)
    assert z.min() > 2 * factor / 20
    for category in (0, 1):
        own = labels == category
        for metric, expected in (
            ("taylor", terms[own].square().mean(0)),
            ("taylor_summed", terms[own].mean(0).square()),
            ("taylor_weight", through_weights[own].mean(0)),
        ):
            torch.testing.assert_close(scores[metric]["0"][category], expected, rtol=1e-3, atol=0)


def regression_data(outputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(11, 6, generator=generator), torch.randn(11, outputs, generator=generator)


def regressor(outputs: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, outputs))
    return randomised(layers).double()


def test_activations_of_a_regression_are_those_of_all_samples_for_every_output() -> None:
    network, data = regressor(2), regression_data(2)
    found = score_many(trace(network, data[0]), in_batches(data, 4), ["avg", "var", "ens"])
    with torch.no_grad():
        values = network[:2](data[0].double())
    for output in range(2):
        assert torch.allclose(found["avg"]["0"][output], values.mean(0), rtol=1e-12)
        assert torch.allclose(found["var"]["0"][output], values.var(0, correction=0), rtol=1e-10)
    assert torch.allclose(found["avg"].overall["0"], values.mean(0), rtol=1e-12)
    assert found["avg"].counts.tolist() == [11, 11]
    assert torch.equal(found["ens"]["0"][0], found["ens"]["0"][1])


@pytest.mark.parametrize("outputs", [1, 2])
def test_gradient_metrics_of_a_regression_take_each_outputs_squared_error(outputs: int) -> None:
    network, data = regressor(outputs), regression_data(outputs)
    found = score_many(trace(network, data[0]), in_batches(data, 4), ["taylor", "taylor_summed", "taylor_weight"])
    for output in range(outputs):
        slopes = loss_slopes(network[:2], network[2:], data, squared_error(output))
        assert torch.allclose(found["taylor"]["0"][output], slopes.square().mean(0), rtol=1e-5, atol=1e-12)
        assert torch.allclose(found["taylor_summed"]["0"][output], slopes.mean(0).square(), rtol=1e-4, atol=1e-12)
        terms = weight_terms(network, "2", data, squared_error(output))
        assert torch.allclose(found["taylor_weight"]["2"][output], terms.mean(0), rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("metric", ["deeplift", "conductance", "integrated_gradients"])
def test_attributions_of_a_regression_go_to_each_output(metric: str) -> None:
    """What categories get when every sample is of that category."""
    network, data = regressor(2), regression_data(2)
    model = trace(network, data[0])
    found = score_neurons(model, in_batches(data, 4), metric)
    for output in range(2):
        own = torch.full((11,), output)
        other = (data[0][:1], torch.tensor([1 - output]))
        expected = score_neurons(model, [(data[0], own), other], metric)
        assert torch.allclose(found["2"][output], expected["2"][output], rtol=1e-9, atol=1e-14)


def test_targets_of_one_output_may_be_given_flat() -> None:
    model, (inputs, targets) = trace(regressor(1), torch.zeros(1, 6)), regression_data(1)
    flat, column = (score_neurons(model, [(inputs, given)], "taylor") for given in (targets[:, 0], targets))
    assert torch.equal(flat["0"], column["0"])


def test_a_regression_through_a_softmax_is_refused() -> None:
    model = trace(nn.Sequential(*mlp(), nn.LogSoftmax(1)), torch.zeros(1, 6))
    with pytest.raises(DatasetError, match="ends in a softmax"):
        score_neurons(model, [(torch.zeros(4, 6), torch.zeros(4, 3))])
