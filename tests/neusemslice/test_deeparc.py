"""Redundant layers: found by CKA, taken out, sewn over."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neusemslice import ModelSlice, SlicingConfig, load_checkpoint, slice_model, trace
from neusemslice.checkpoint import save_checkpoint
from neusemslice.deeparc import cka_matrix, remove_redundant
from neusemslice.deeparc.places import find_places
from neusemslice.errors import ConfigError, DatasetError, SliceMismatchError, UnsupportedModelError
from neusemslice.least_squares import LeastSquares
from neusemslice.slicing import slice_many
from neusemslice.tracing import SliceableModel
from tests.neusemslice.networks import mlp, randomised, vgg_like
from tests.reference import cka as reference

SAMPLES = 48


class Block(nn.Module):
    """y = relu(x + second(relu(first(x)))), or through a projection where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.projection = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.projection(x) + self.second(torch.relu(self.first(x))))


def residual() -> nn.Sequential:
    """Stem, blocks 2 to 5 of which 3 and 4 add next to nothing, head; takes [2, 6, 6]."""
    blocks = [Block(4, 4), Block(4, 4), Block(4, 4), Block(4, 6)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]
    network = randomised(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), *blocks, *head))
    for block in blocks[1:3]:
        block.second.weight.data *= 0.0
        block.second.bias.data *= 0.0
    return network


def positive(network: nn.Module) -> nn.Module:
    """Weights and biases that keep what is positive positive: ReLUs behind the first do nothing."""
    for parameter in randomised(network).parameters():
        parameter.data = parameter.data.abs()
    return network


def batches(shape: tuple[int, ...], size: int = 16, samples: int = SAMPLES) -> list[tuple[Tensor, Tensor]]:
    inputs = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(1))
    return list(zip(inputs.split(size), (torch.arange(samples) % 3).split(size), strict=True))


def traced(network: nn.Module, *shape: int) -> SliceableModel:
    return trace(network, torch.zeros(1, *shape))


def values_at(model: SliceableModel, paths: tuple[str, ...], inputs: Tensor) -> list[np.ndarray]:
    """By hooks, independent of the engine's own reading."""
    found: dict[str, Tensor] = {}
    for path in paths:
        layer = model.graph_module.get_submodule(path)
        layer.register_forward_hook(lambda _, __, value, path=path: found.update({path: value}))
    with torch.no_grad():
        model.graph_module(inputs)
    for path in paths:
        model.graph_module.get_submodule(path)._forward_hooks.clear()
    return [found[path].numpy() for path in paths]


@pytest.fixture(scope="module")
def model() -> SliceableModel:
    return traced(residual(), 2, 6, 6)


@pytest.fixture(scope="module")
def data():
    return batches((2, 6, 6))


class TestPlaces:
    @pytest.mark.parametrize(("network", "shape"), [(mlp(), (6,)), (vgg_like(), (2, 12, 12))])
    def test_of_a_sequence_are_where_its_layers_are_read(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        model = traced(network, *shape)
        assert [place.path for place in find_places(model)] == [layer.read_node for layer in model.sliceable_layers]

    def test_of_a_residual_network_are_its_blocks_outputs(self, model) -> None:
        places = find_places(model)
        assert [place.layers for place in places] == [
            ("0",),
            ("2.first", "2.second"),
            ("3.first", "3.second"),
            ("4.first", "4.second"),
            ("5.projection", "5.first", "5.second"),
        ]
        assert {type(model.graph_module.get_submodule(place.path)) for place in places} == {nn.ReLU}


class TestMatrix:
    @pytest.mark.parametrize("estimator", ["unbiased", "biased"])
    @pytest.mark.parametrize("landscape", ["pooled", "flattened"])
    def test_agrees_with_cka_as_it_is_written(self, model, data, estimator: str, landscape: str) -> None:
        names, matrix = cka_matrix(model, data, SlicingConfig(estimator=estimator, landscape=landscape))
        values = values_at(model, names, torch.cat([inputs for inputs, _ in data]))
        if landscape == "pooled":
            values = [value.mean((2, 3)) for value in values]
        expected = [[reference.cka(one, other, estimator) for other in values] for one in values]
        np.testing.assert_allclose(matrix.numpy(), expected, rtol=0, atol=1e-6)

    def test_depends_on_neither_batches_nor_budget(self, model, data) -> None:
        _, matrix = cka_matrix(model, data)
        _, other = cka_matrix(model, batches((2, 6, 6), size=7))
        torch.testing.assert_close(matrix, other, rtol=0, atol=1e-6)
        with pytest.raises(ConfigError, match="Gram matrices of 5 places"):
            cka_matrix(model, data, SlicingConfig(memory_budget_bytes=10_000))
        _, tight = cka_matrix(model, data, SlicingConfig(memory_budget_bytes=250 * 768**2))
        assert torch.equal(tight, matrix)

    def test_takes_equally_many_of_each_category(self, model, data) -> None:
        """Ten more samples of category 0 in front change which are taken, not how many."""
        config = SlicingConfig(samples_per_category=8)
        chosen = torch.cat([inputs for inputs, _ in data])[:24]
        values = values_at(model, ("1", "3.act"), chosen)
        names, matrix = cka_matrix(model, data, config)
        expected = reference.cka(*(value.mean((2, 3)) for value in values), "unbiased")
        found = matrix[names.index("1")][[place.path for place in find_places(model)].index(names[2])]
        assert abs(expected - float(found)) < 1e-6
        front = [(chosen[:1].expand(10, -1, -1, -1) * 1.0, torch.zeros(10, dtype=torch.long))]
        assert not torch.equal(cka_matrix(model, front + data, config)[1], matrix)

    def test_a_constant_place_is_like_itself_alone(self) -> None:
        network = mlp()
        network[2].weight.data.zero_()
        _, matrix = cka_matrix(traced(network, 6), batches((6,)))
        assert matrix.tolist() == [[1.0, 0.0], [0.0, 1.0]]

    def test_too_few_samples_are_refused(self, model) -> None:
        with pytest.raises(DatasetError, match="at least 4 samples"):
            cka_matrix(model, batches((2, 6, 6), samples=3))


class TestSlice:
    def test_keeps_layers_whole_or_not_at_all(self, model, data) -> None:
        found = slice_model(model, data, SlicingConfig(strategy="deeparc"))
        removed = {"3.first", "3.second", "4.first", "4.second"}
        for layer in model.sliceable_layers:
            keep = found.keep_masks[layer.name]
            assert keep.shape == (3, layer.neurons)
            assert bool(keep.all()) if layer.name not in removed else not bool(keep.any())

    def test_curves_hold_the_similarity_of_adjacent_places(self, model, data) -> None:
        found = slice_model(model, data, SlicingConfig(strategy="deeparc"))
        _, matrix = cka_matrix(model, data)
        for place, alike in zip(find_places(model)[1:], matrix.diagonal(1), strict=True):
            for layer in place.layers:
                assert bool((found.curves[layer] == alike).all())
        assert bool((found.curves["0"] == 0).all())
        assert all(bool(keep.all()) for keep in found.at(1.0).keep_masks.values())

    def test_survives_its_file(self, model, data, tmp_path: Path) -> None:
        found = slice_model(model, data, SlicingConfig(strategy="deeparc"))
        found.save(tmp_path / "slice")
        loaded = ModelSlice.load(tmp_path / "slice")
        assert loaded.config == found.config
        assert all(torch.equal(loaded.keep_masks[layer], keep) for layer, keep in found.keep_masks.items())
        assert json.loads(json.dumps(loaded.summary()))["3.first"]["kept"] == 0

    def test_shares_an_analysis_with_other_strategies(self, model, data) -> None:
        configs = [
            SlicingConfig(strategy="deeparc", threshold=0.5),
            SlicingConfig(threshold=0.9),
            SlicingConfig(strategy="deeparc"),
        ]
        for config, found in zip(configs, slice_many(model, data, configs), strict=True):
            alone = slice_model(model, data, config)
            assert found.config == config
            assert all(torch.equal(alone.curves[layer], found.curves[layer]) for layer in alone.layers)
            assert all(torch.equal(alone.keep_masks[layer], keep) for layer, keep in found.keep_masks.items())


class TestRemoval:
    def test_a_block_that_adds_nothing_goes_without_a_trace(self, model, data) -> None:
        """Blocks 3 and 4 give relu(x + 0) = x, so the stream goes on without them, to the last bit."""
        sewn = remove_redundant(model, slice_model(model, data, SlicingConfig(strategy="deeparc")))
        inputs = data[0][0]
        assert torch.equal(sewn.model(inputs), model(inputs))
        (seam,) = sewn.seams
        assert (seam.kind, seam.residual, seam.parameters_after) == ("identity", None, 0)
        assert seam.layers == ("3.first", "3.second", "4.first", "4.second")
        by_hand = 2 * 2 * (4 * 4 * 9 + 4)
        assert seam.parameters_before == by_hand
        assert sewn.parameters_before - sewn.parameters_after == by_hand
        assert sum(parameter.numel() for parameter in sewn.model.parameters()) == sewn.parameters_after

    def test_calibration_says_how_far_off_the_stream_is(self, data) -> None:
        network = residual()
        network[3].second.bias.data += 0.3
        model = traced(network, 2, 6, 6)
        names = [place.path for place in find_places(model)]
        sewn = remove_redundant(model, slice_model(model, data, SlicingConfig(strategy="deeparc")), data)
        before, after = values_at(model, (names[1], names[3]), torch.cat([inputs for inputs, _ in data]))
        expected = np.linalg.norm(after - before) / np.linalg.norm(after - after.mean((0, 2, 3), keepdims=True))
        assert sewn.seams[0].residual == pytest.approx(expected, rel=1e-5)

    def test_nothing_redundant_leaves_every_bit(self, model, data) -> None:
        found = slice_model(model, data, SlicingConfig(strategy="deeparc", threshold=1.0))
        sewn = remove_redundant(model, found)
        assert sewn.seams == ()
        assert torch.equal(sewn.model(data[0][0]), model(data[0][0]))
        assert sewn.parameters_after == sewn.parameters_before

    @pytest.mark.parametrize(
        ("network", "shape", "types"),
        [
            (
                nn.Sequential(
                    nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 3)
                ),
                (6,),
                [nn.Linear],
            ),
            (
                nn.Sequential(
                    nn.Conv2d(2, 6, 3),
                    nn.ReLU(),
                    nn.AvgPool2d(2),
                    nn.Conv2d(6, 5, 1),
                    nn.ReLU(),
                    nn.Flatten(),
                    nn.Linear(20, 3),
                ),
                (2, 6, 6),
                [nn.AdaptiveAvgPool2d, nn.Conv2d],
            ),
            (
                nn.Sequential(
                    nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Conv1d(6, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)
                ),
                (2, 6),
                [nn.Conv1d],
            ),
            (
                nn.Sequential(
                    nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)
                ),
                (2, 4, 4),
                [nn.Flatten, nn.Linear],
            ),
            (
                nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 3)),
                (3, 4),
                [nn.Linear],
            ),
        ],
        ids=["linear", "pooled convolution", "convolution 1d", "behind a flatten", "tokens"],
    )
    def test_an_exactly_linear_redundancy_is_sewn_exactly(
        self, network: nn.Module, shape: tuple[int, ...], types: list[type[nn.Module]], tmp_path: Path
    ) -> None:
        """Behind the first ReLU everything is positive: the layers after it are linear maps up to the last place."""
        first = next(iter(positive(network).children()))
        first.weight.data = torch.randn(first.weight.shape, generator=torch.Generator().manual_seed(3))
        model, data = traced(network, *shape), batches(shape, samples=96)
        found = slice_model(model, data, SlicingConfig(strategy="deeparc", threshold=0.01))
        sewn = remove_redundant(model, found, [inputs for inputs, _ in data])
        (seam,) = sewn.seams
        assert seam.kind == "linear"
        assert seam.residual < 1e-5
        inputs = torch.randn(8, *shape)
        torch.testing.assert_close(sewn.model(inputs), model(inputs), rtol=1e-4, atol=1e-5)
        layers = [
            type(sewn.model.get_submodule(str(node.target)))
            for node in sewn.model.graph.nodes
            if node.op == "call_module"
        ]
        assert layers[2 : 2 + len(types)] == types
        save_checkpoint(sewn.model, model.input_shape, tmp_path / "sewn")
        assert torch.equal(load_checkpoint(tmp_path / "sewn")(inputs), sewn.model(inputs))
        assert traced(sewn.model, *shape).sliceable_layers

    def test_a_sewing_layer_may_be_as_large_as_what_it_replaces(self) -> None:
        """As the paper found for MLPs: a square linear layer for a square linear layer."""
        network = randomised(
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), seed=2
        )
        model, data = traced(network, 6), batches((6,))
        sewn = remove_redundant(model, slice_model(model, data, SlicingConfig(strategy="deeparc", threshold=0.1)), data)
        assert sewn.parameters_after == sewn.parameters_before
        assert sewn.to_dict()["seams"][0]["parameters_after"] == 8 * 8 + 8
        json.dumps(sewn.to_dict(), allow_nan=False)

    def test_later_seams_are_fitted_to_what_earlier_ones_give(self) -> None:
        """Two runs with a layer that stays between them; the second map makes up for the first one's error."""
        widths = [6, 12, 12, 12, 12, 3]
        layers = [part for i, o in pairwise(widths) for part in (nn.Linear(i, o), nn.Tanh())]
        model, data = traced(randomised(nn.Sequential(*layers[:-1])), 6), batches((6,), samples=300)
        found = slice_model(model, data, SlicingConfig(strategy="deeparc"))
        curves = {name: torch.zeros_like(curve) for name, curve in found.curves.items()}
        curves["2"] += 1.0
        curves["6"] += 1.0
        chosen = ModelSlice(
            SlicingConfig(strategy="deeparc"),
            model.fingerprint,
            found.contributions,
            found.orders,
            curves,
            curves,
        )
        sewn = remove_redundant(model, chosen, data)
        assert [(seam.first, seam.last) for seam in sewn.seams] == [("1", "3"), ("5", "7")]
        inputs = torch.cat([inputs for inputs, _ in data])
        before = sewn.model.get_submodule("5")(
            sewn.model.get_submodule("4")(
                sewn.model.get_submodule("3")(
                    model.graph_module.get_submodule("1")(model.graph_module.get_submodule("0")(inputs))
                )
            )
        )
        (target,) = values_at(model, ("7",), inputs)
        design = np.c_[before.detach().double().numpy(), np.ones(len(inputs))]
        best = design @ np.linalg.lstsq(design, target.astype(np.float64), rcond=None)[0]
        sewn_value = sewn.model.get_submodule("7")(before).detach().numpy()
        assert np.linalg.norm(sewn_value - target) < 1.05 * np.linalg.norm(best - target)

    def test_the_model_stays_as_it_is(self, model, data) -> None:
        before = {name: tensor.clone() for name, tensor in model.graph_module.state_dict().items()}
        sewn = remove_redundant(model, slice_model(model, data, SlicingConfig(strategy="deeparc")), data)
        for parameter in sewn.model.parameters():
            parameter.data.zero_()
        after = model.graph_module.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert all(parameter.requires_grad for parameter in sewn.model.parameters())


class TestRefusals:
    @pytest.fixture
    def sequence(self):
        model, data = traced(mlp(), 6), batches((6,))
        return model, data, slice_model(model, data, SlicingConfig(strategy="deeparc", threshold=0.01))

    def test_of_slices_that_do_not_fit(self, sequence, model, data) -> None:
        mine, samples, found = sequence
        with pytest.raises(SliceMismatchError, match="another model"):
            remove_redundant(model, found, data)
        with pytest.raises(SliceMismatchError, match="keeps neurons"):
            remove_redundant(mine, slice_model(mine, samples, SlicingConfig(strategy="global")), samples)

    def test_of_calibration_data(self, sequence) -> None:
        model, data, found = sequence
        with pytest.raises(ConfigError, match="has to be fitted") as caught:
            remove_redundant(model, found)
        assert caught.value.field == "calibration"
        with pytest.raises(DatasetError, match="only once"):
            remove_redundant(model, found, iter(data))
        with pytest.raises(DatasetError, match=r"\(16, 5\)"):
            remove_redundant(model, found, [torch.zeros(16, 5)])
        with pytest.raises(DatasetError, match="too few"):
            remove_redundant(model, found, [torch.zeros(3, 6)])

    def test_of_shapes_that_nothing_sews_together(self) -> None:
        network = randomised(
            nn.Sequential(
                nn.Conv3d(1, 4, 2), nn.ReLU(), nn.Conv3d(4, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8, 3)
            )
        )
        model, data = traced(network, 1, 4, 4, 4), batches((1, 4, 4, 4))
        found = slice_model(model, data, SlicingConfig(strategy="deeparc", threshold=0.001, estimator="biased"))
        with pytest.raises(UnsupportedModelError, match="No sewing layer leads from '1'"):
            remove_redundant(model, found, data)


class TestLeastSquares:
    def test_finds_the_map_and_its_intercept(self) -> None:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(50, 2, 4, generator=generator) + 3.0
        weight, bias = torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator)
        fit = LeastSquares()
        for part in inputs.split(7):
            fit.add(part, part @ weight.T + bias)
        found = fit.solve()
        torch.testing.assert_close(found.weight.float(), weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.bias.float(), bias, rtol=0, atol=1e-5)
        assert found.residual < 1e-5

    def test_judges_on_samples_that_it_did_not_see(self) -> None:
        """Noise cannot be predicted, though with more inputs than samples it can be fitted without error."""
        generator = torch.Generator().manual_seed(0)
        fit = LeastSquares()
        fit.add(torch.randn(40, 1, 100, generator=generator), torch.randn(40, 1, 5, generator=generator))
        assert fit.solve().residual > 0.9

    def test_a_constant_target_leaves_no_residual(self) -> None:
        fit = LeastSquares()
        fit.add(torch.randn(20, 1, 3), torch.full((20, 1, 2), 7.0))
        found = fit.solve()
        assert found.residual < 1e-5
        torch.testing.assert_close(found.bias, torch.full((2,), 7.0, dtype=torch.float64))

    def test_inputs_that_do_not_vary_predict_the_mean(self) -> None:
        fit = LeastSquares()
        targets = torch.randn(20, 1, 2, generator=torch.Generator().manual_seed(0))
        fit.add(torch.ones(20, 1, 3), targets)
        found = fit.solve()
        torch.testing.assert_close((found.weight.sum(1) + found.bias).float(), targets.mean((0, 1)))
