"""Networks of several branches: which neurons go together, what is left of them, and that nothing else changes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from neusemslice import load_checkpoint, restructure, trace
from neusemslice.cutting import cut_neurons
from neusemslice.errors import UnsupportedModelError
from neusemslice.masking import mask_neurons
from neusemslice.profiling import count_parameters
from neusemslice.restructuring import parameters_after
from neusemslice.tracing import SliceableModel
from tests.neusemslice.graphs import GRAPHS, graph
from tests.neusemslice.networks import randomised
from tests.neusemslice.test_restructuring import random_keep
from tests.reference.cuts import completeness_error


def traced(name: str) -> SliceableModel:
    return trace(graph(name).double(), torch.zeros(1, *GRAPHS[name][1], dtype=torch.float64))


def inputs_of(name: str, samples: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, *GRAPHS[name][1], dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_canonical_form_computes_the_network(name: str) -> None:
    network, inputs = graph(name).double(), inputs_of(name)
    model = traced(name)
    with torch.no_grad():
        for batch in (inputs, inputs[:1]):
            torch.testing.assert_close(model(batch), network(batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "sliceable", "coupled"),
    [
        ("residual", ["stem.0", "first.0", "first.3", "second.0", "second.2"], [("stem.0", "first.3", "second.2")]),
        ("mobile", ["stem", "expand.0", "squeeze", "project.0"], [("stem", "project.0")]),
        ("dense", ["stem", "convs.0", "convs.1", "convs.2"], []),
        ("grouped", ["reduce", "grouped", "back"], [("reduce", "back")]),
        ("tokens", ["attention.in_proj", "mlp.0"], []),
        ("mixed", ["wide"], []),
    ],
)
def test_what_is_sliceable_and_what_is_coupled(name: str, sliceable: list[str], coupled: list[tuple[str, ...]]) -> None:
    """By hand: a gate follows what it scales; what a LayerNorm, an attention or a softmax reads stays whole."""
    model = traced(name)
    assert [layer.name for layer in model.sliceable_layers] == sliceable
    assert list(model.coupled) == coupled


def test_where_the_neurons_of_branches_are_read() -> None:
    residual, mobile, tokens = traced("residual"), traced("mobile"), traced("tokens")
    assert [layer.read_node for layer in residual.sliceable_layers] == [
        "stem.2",
        "first.2",
        "first.4",
        "second.1",
        "second.2",
    ]
    expand = mobile.layer("expand.0")
    assert (expand.read_node, expand.neurons, expand.spatial) == ("depthwise.2", 8, 16)
    hidden = tokens.layer("mlp.0")
    assert (hidden.read_node, hidden.axis, hidden.neurons, hidden.spatial) == ("mlp.1", 2, 10, 5)
    value = torch.arange(2 * 5 * 10.0).view(2, 5, 10)
    assert torch.equal(hidden.per_neuron(value), value.transpose(1, 2))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("branches", ["union", "scatter"])
@pytest.mark.parametrize("name", GRAPHS)
def test_restructured_computes_what_masked_computes(name: str, branches: str, seed: int) -> None:
    model, inputs = traced(name), inputs_of(name)
    keep = random_keep(model, seed)
    result = restructure(model, keep, branches=branches)
    expected = mask_neurons(model, keep, branches)(inputs)
    torch.testing.assert_close(result.model(inputs), expected, rtol=0, atol=1e-11)
    assert result.report.parameters_after == parameters_after(model, keep, branches)
    if name != "grouped":  # so few neurons a group that all may have to stay
        assert result.report.parameters_after < result.report.parameters_before
    for layer in model.sliceable_layers:
        left = result.report.layers[layer.name].kept
        own = int(keep[layer.name].sum())
        free = layer.name not in {member for names in model.coupled for member in names}
        assert left == own if name != "grouped" and (free or branches == "scatter") else left >= own


def test_a_removed_neuron_is_silent_for_all_that_read_it() -> None:
    """By hand on the dense network: behind each of three norms, which would turn a zero into something else."""
    network, model, inputs = graph("dense").double(), traced("dense"), inputs_of("dense")
    keep = {"stem": torch.tensor([True, False, True, True])}
    silent = torch.tensor([1.0, 0, 1, 1], dtype=torch.float64).view(1, 4, 1, 1)
    features = [network.stem(inputs)]
    for norm, conv in zip(network.norms, network.convs, strict=True):
        read = torch.relu(norm(torch.cat(features, 1)))
        features.append(conv(torch.cat([read[:, :4] * silent, read[:, 4:]], 1)))
    pooled = nn.functional.max_pool2d(features[-1], 2).permute(0, 2, 3, 1).flatten(1)
    expected = network.fc(pooled)
    torch.testing.assert_close(mask_neurons(model, keep)(inputs), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(restructure(model, keep).model(inputs), expected, rtol=1e-12, atol=1e-12)


def test_coupled_layers_keep_the_union() -> None:
    """Stream of six: the stem asks for 0, 1; the blocks for 1, 2 and for 2, 3. Four are left, of each branch two."""
    model, inputs = traced("residual"), inputs_of("residual")
    asked = {"stem.0": (0, 1), "first.3": (1, 2), "second.2": (2, 3)}
    keep = {name: torch.zeros(6, dtype=torch.bool).index_fill(0, torch.tensor(k), True) for name, k in asked.items()}
    union, scatter = (restructure(model, keep, branches=branches) for branches in ("union", "scatter"))
    for name in asked:
        assert union.report.layers[name].kept == 4
        assert scatter.report.layers[name].kept == 2
    assert scatter.report.parameters_after < union.report.parameters_after
    assert scatter.model.get_submodule("fc").in_features == union.model.get_submodule("fc").in_features == 4
    network = graph("residual").double()
    only = {name: mask.double().view(1, 6, 1, 1) for name, mask in keep.items()}
    stream = network.stem(inputs) * only["stem.0"]
    stream = torch.relu(network.first(stream) * only["first.3"] + stream)
    stream = torch.relu(network.second(stream) * only["second.2"] + stream)
    expected = network.fc(stream.mean((2, 3)))
    torch.testing.assert_close(scatter.model(inputs), expected, rtol=1e-12, atol=1e-12)


def test_grouped_convolutions_keep_equally_many_in_each_group() -> None:
    """Groups of three; asked for 0 and 1 of the first, 3 of the second, none of the third: 3 and 4, 6 and 7 fill up."""
    model = traced("grouped")
    keep = {"grouped": torch.zeros(9, dtype=torch.bool).index_fill(0, torch.tensor([0, 1, 3]), True)}
    cut = cut_neurons(model, keep)
    assert cut.present("grouped").flatten().nonzero()[:, 0].tolist() == [0, 1, 3, 4, 6, 7]
    assert tuple(restructure(model, keep).model.get_submodule("grouped").weight.shape) == (6, 2, 3, 3)


def test_gates_follow_what_they_scale() -> None:
    model = traced("mobile")
    keep = {"expand.0": torch.arange(8) < 3}
    smaller = restructure(model, keep).model
    assert smaller.get_submodule("excite").out_features == smaller.get_submodule("squeeze").in_features == 3
    assert smaller.get_submodule("depthwise.0").groups == 3
    assert smaller.get_submodule("reshape").shape == (3, 1, 1)


@pytest.mark.parametrize("branches", ["union", "scatter"])
@pytest.mark.parametrize("name", GRAPHS)
def test_checkpoints_of_graphs(name: str, branches: str, tmp_path: Path) -> None:
    """Written, read, and traced again: the same bits, and it can be sliced once more."""
    model = trace(graph(name), torch.zeros(1, *GRAPHS[name][1]))
    result = restructure(model, random_keep(model), branches=branches)
    result.save(tmp_path / "small.safetensors")
    loaded = load_checkpoint(tmp_path / "small.safetensors")
    inputs = inputs_of(name).float()
    assert torch.equal(loaded(inputs), result.model(inputs))
    again = trace(loaded, inputs)
    assert torch.equal(again(inputs), loaded(inputs))
    assert count_parameters(again.graph_module) == result.report.parameters_after
    keep = {layer.name: torch.arange(layer.neurons) == 0 for layer in again.sliceable_layers}
    assert restructure(again, keep).report.parameters_after < result.report.parameters_after


@pytest.mark.parametrize("name", GRAPHS)
def test_deeplift_is_complete_at_every_cut(name: str) -> None:
    model, inputs = traced(name), inputs_of(name)
    targets = torch.arange(len(inputs)) % 3
    cuts = range(len(model.graph_module.graph.nodes) - 2)
    assert max(completeness_error(model, 2 * inputs, targets, cut) for cut in cuts) < 1e-12


def test_attention_heads_are_neurons() -> None:
    """Two heads of three features; without the first, its queries, keys and contents and what reads it are gone."""
    model, inputs = traced("tokens"), inputs_of("tokens")
    network = graph("tokens").double()
    keep = {"attention.in_proj": torch.tensor([False, True])}
    smaller = restructure(model, keep).model
    assert tuple(smaller.get_submodule("attention.in_proj").weight.shape) == (9, 6)
    assert smaller.get_submodule("attention.attention").num_heads == 1
    assert tuple(smaller.get_submodule("attention.out_proj").weight.shape) == (6, 3)
    with torch.no_grad():
        network.attention.out_proj.weight[:, :3] = 0  # by hand: the first head is not read
        torch.testing.assert_close(smaller(inputs), network(inputs), rtol=1e-12, atol=1e-12)


def test_a_product_of_two_equals_couples_both() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.one(x) * self.other(x))

    model = trace(randomised(Product()), torch.zeros(1, 4))
    assert model.coupled == (("one", "other"),)
    keep = {"one": torch.arange(6) < 2, "other": torch.arange(6) == 4}
    assert restructure(model, keep).report.layers["one"].kept == 3


def test_a_gate_over_space_fixes_only_itself() -> None:
    class SpatialGate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate, self.out = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 1, 1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out((self.conv(x) * self.gate(x).sigmoid()).mean((2, 3)))

    model = trace(randomised(SpatialGate()), torch.zeros(1, 2, 4, 4))
    assert [layer.name for layer in model.sliceable_layers] == ["conv"]
    assert restructure(model, {"conv": torch.arange(4) < 2}).model.get_submodule("gate").out_channels == 1


class MutualGates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.one(x), self.other(x)
        return self.out(one * torch.tanh(other) + other * torch.tanh(one))


class OneOfTheNeurons(nn.Module):
    """Takes the third channel: whole channels cannot go."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Conv2d(2, 5, 1), nn.Conv2d(5, 4, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.second(torch.relu(self.first(x))))[:, 2].flatten(1))


class JoinedInSpace(nn.Module):
    """Two branches one above the other: their channels are the same ones."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.out = nn.Conv2d(2, 5, 1), nn.Conv2d(2, 5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.one(x).flatten(2), self.other(x).relu().flatten(2)], 2).mean(2))


class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool, self.out = nn.Linear(4, 8), nn.MaxPool1d(2), nn.Linear(4, 3)
        self.hidden = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(self.pool(self.first(x)))))


@pytest.mark.parametrize("branches", ["union", "scatter"])
@pytest.mark.parametrize(
    ("make", "shape", "sliceable"),
    [
        (MutualGates, (4,), ["one", "other"]),
        (OneOfTheNeurons, (2, 4, 4), ["first"]),
        (JoinedInSpace, (2, 4, 4), ["one", "other"]),
        (Maxout, (4,), ["hidden"]),
    ],
)
def test_unusual_joins(make: type[nn.Module], shape: tuple[int, ...], sliceable: list[str], branches: str) -> None:
    torch.manual_seed(0)
    network = randomised(make()).double()
    inputs = torch.randn(5, *shape, dtype=torch.float64)
    model = trace(network, inputs)
    assert [layer.name for layer in model.sliceable_layers] == sliceable
    torch.testing.assert_close(restructure(model, {}).model(inputs), network(inputs), rtol=1e-12, atol=1e-12)
    keep = random_keep(model)
    smaller = restructure(model, keep, branches=branches).model
    torch.testing.assert_close(smaller(inputs), mask_neurons(model, keep, branches)(inputs), rtol=0, atol=1e-12)
    cuts = range(len(model.graph_module.graph.nodes) - 2)
    assert max(completeness_error(model, inputs, torch.arange(5) % 3, cut) for cut in cuts) < 1e-12


def test_a_scattered_network_can_be_sliced_again() -> None:
    """Its streams too: the zeros that were put in belong to no producer."""
    model, inputs = traced("residual"), inputs_of("residual")
    first = restructure(model, random_keep(model), branches="scatter")
    again = trace(first.model, inputs)
    assert [layer.name for layer in again.sliceable_layers] == [layer.name for layer in model.sliceable_layers]
    for branches in ("union", "scatter"):
        keep = random_keep(again, seed=3)
        second = restructure(again, keep, branches=branches)
        assert second.report.parameters_after < first.report.parameters_after
        expected = mask_neurons(again, keep, branches)(inputs)
        torch.testing.assert_close(second.model(inputs), expected, rtol=0, atol=1e-12)


def test_half_precision_is_proven_in_single() -> None:
    model = trace(graph("residual").bfloat16(), torch.zeros(1, 2, 8, 8))
    result = restructure(model, random_keep(model))
    assert result.model.get_submodule("fc").weight.dtype == torch.bfloat16
    assert result.report.max_relative_difference < 1e-5


def test_deeplift_is_complete_where_norms_see_nothing_but_zeros() -> None:
    """Without biases the baseline of every norm is constant, its deviation sqrt(eps): nothing may cancel there."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linears = nn.ModuleList(nn.Linear(12, 12, bias=False) for _ in range(6))
            self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(6))
            self.hidden, self.out = nn.Linear(12, 20), nn.Linear(20, 3)

        def forward(self, x: Tensor) -> Tensor:
            for linear, norm in zip(self.linears, self.norms, strict=True):
                x = torch.nn.functional.gelu(norm(linear(x)))
            return self.out(torch.relu(self.hidden(x)))

    torch.manual_seed(0)
    inputs = torch.randn(6, 12)
    model = trace(randomised(Normed()), inputs)
    for cut in range(len(model.graph_module.graph.nodes) - 2):
        assert completeness_error(model, inputs, torch.arange(6) % 3, cut) < 1e-5


def test_one_output_is_a_category() -> None:
    model = trace(randomised(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))), torch.zeros(1, 4))
    assert model.categories == 1
    assert restructure(model, {"0": torch.arange(5) < 2}).report.layers["0"].kept == 2


def test_attention_between_two_values_is_refused() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(4, 1, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.attention(x, x * x, x, need_weights=False)[0].mean(1))

    with pytest.raises(UnsupportedModelError, match=r"'attention'.*attention of one value to itself") as caught:
        trace(Cross(), torch.zeros(1, 5, 4))
    assert caught.value.node == "attention"
