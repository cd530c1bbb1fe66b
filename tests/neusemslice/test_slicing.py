"""From contributions to critical neurons."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from neusemslice import ModelSlice, SlicingConfig, score_neurons, slice_model, trace
from neusemslice.errors import CheckpointError, ConfigError, DatasetError, StoppedError
from neusemslice.features import layer_groups
from neusemslice.selection import first_crossing, keep_counts, keep_first
from tests.neusemslice.networks import mlp, vgg_like
from tests.reference import cka as reference

SAMPLES = 60
STRATEGIES = ["semantic", "categorywise", "global", "random"]


def batches(shape: tuple[int, ...], size: int = 16, samples: int = SAMPLES) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Three categories in turn."""
    inputs = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(samples) % 3
    return list(zip(inputs.split(size), labels.split(size), strict=True))


@pytest.fixture(scope="module")
def model():
    return trace(vgg_like(), torch.zeros(1, 2, 12, 12))


@pytest.fixture(scope="module")
def data():
    return batches((2, 12, 12))


def same(one: ModelSlice, other: ModelSlice) -> bool:
    parts = ("orders", "curves", "control_curves", "keep_masks")
    return all(
        torch.equal(getattr(one, part)[layer], getattr(other, part)[layer]) for part in parts for layer in one.layers
    )


class TestFirstCrossing:
    def test_is_the_first_even_if_the_curve_falls_again(self) -> None:
        """Bisection over this curve would find 5."""
        curve = torch.tensor([[0.2, 0.91, 0.5, 0.6, 0.95, 1.0]], dtype=torch.float64)
        assert first_crossing(curve, 0.9).tolist() == [2]
        assert first_crossing(curve, 0.92).tolist() == [5]

    def test_is_the_last_neuron_at_the_latest(self) -> None:
        assert first_crossing(torch.tensor([[0.1, 0.2, 1.0]], dtype=torch.float64), 1.0).tolist() == [3]

    def test_counts_each_category_by_itself(self) -> None:
        curves = torch.tensor([[0.95, 1.0, 1.0], [0.1, 0.2, 1.0]], dtype=torch.float64)
        assert first_crossing(curves, 0.9).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("fraction", "neurons", "kept"),
    [(0.1, 30, 3), (0.1, 31, 4), (0.001, 30, 1), (1.0, 7, 7), (0.3, 10, 3), (0.5, 5, 3)],
)
def test_a_fraction_keeps_its_ceiling(fraction: float, neurons: int, kept: int) -> None:
    config = SlicingConfig(strategy="global", fraction=fraction)
    assert keep_counts(torch.ones(2, neurons, dtype=torch.float64), config).tolist() == [kept, kept]


def test_keep_masks_mark_the_first_of_each_order() -> None:
    keep = keep_first(torch.tensor([[2, 0, 1], [1, 2, 0]]), torch.tensor([1, 2]))
    assert keep.tolist() == [[False, False, True], [False, True, True]]


class TestSemantic:
    def test_keeps_the_smallest_prefix_that_covers(self, model, data) -> None:
        """Every step again with the naive scan: order by contribution, CKA of each prefix, first crossing."""
        config = SlicingConfig(threshold=0.9, metric="avg")
        found, scores = slice_model(model, data, config), score_neurons(model, data, "avg")
        values, labels = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
        outputs = {}
        with torch.no_grad():
            for layer in model.sliceable_layers:
                value = values
                for node in model.graph_module.graph.nodes:
                    if node.op == "call_module":
                        value = model.graph_module.get_submodule(node.target)(value)
                        if node.target == layer.read_node:
                            break
                outputs[layer.name] = layer.per_neuron(value).mean(2).numpy()
        assert found.layers == tuple(outputs)
        for layer, features in outputs.items():
            for category in range(3):
                order = np.argsort(-scores[layer][category].numpy(), kind="stable")
                curve = reference.cka_prefix(features[labels == category], order, "unbiased")
                k = next(k for k, value in enumerate(curve, start=1) if value >= 0.9)
                np.testing.assert_allclose(found.curves[layer][category].numpy(), curve, rtol=0, atol=1e-6)
                assert set(np.flatnonzero(found.keep_masks[layer][category].numpy())) == set(order[:k].tolist())

    def test_merging_is_the_union_over_the_categories(self, model, data) -> None:
        found = slice_model(model, data)
        for layer, keep in found.merged().items():
            assert torch.equal(keep, found.keep_masks[layer].any(0))

    def test_cutting_again_is_slicing_again(self, model, data) -> None:
        once = slice_model(model, data, SlicingConfig(threshold=0.99))
        assert same(once.at(0.7), slice_model(model, data, SlicingConfig(threshold=0.7)))
        assert once.config.threshold == 0.99

    def test_a_higher_theta_keeps_no_less(self, model, data) -> None:
        found = slice_model(model, data)
        kept = [sum(int(keep.sum()) for keep in found.at(theta).merged().values()) for theta in (0.3, 0.6, 0.9, 0.999)]
        assert kept == sorted(kept)


class TestOtherStrategies:
    def test_categorywise_keeps_each_categorys_best(self, model, data) -> None:
        found = slice_model(model, data, SlicingConfig(strategy="categorywise", fraction=0.4))
        scores = score_neurons(model, data)
        for layer, keep in found.keep_masks.items():
            for category in range(3):
                best = scores[layer][category].topk(int(keep[category].sum())).indices
                assert bool(keep[category][best].all())

    def test_global_ranks_once_for_all_categories(self, model, data) -> None:
        found = slice_model(model, data, SlicingConfig(strategy="global", fraction=0.5))
        overall = score_neurons(model, data).overall
        for layer, keep in found.keep_masks.items():
            assert torch.equal(keep, keep[:1].expand_as(keep))
            assert bool(keep[0][overall[layer].topk(int(keep[0].sum())).indices].all())

    def test_random_depends_on_the_seed_alone(self, model, data) -> None:
        config = SlicingConfig(strategy="random", fraction=0.5, seed=1)
        one, again = slice_model(model, data, config), slice_model(model, data[:2], config)
        other = slice_model(model, data, dataclasses.replace(config, seed=2))
        assert all(torch.equal(one.orders[layer], again.orders[layer]) for layer in one.layers)
        assert any(not torch.equal(one.orders[layer], other.orders[layer]) for layer in one.layers)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_every_strategy_reports_coverage_and_control(self, model, data, strategy: str) -> None:
        found = slice_model(model, data, SlicingConfig(strategy=strategy))
        for layer in model.sliceable_layers:
            for curves in (found.curves[layer.name], found.control_curves[layer.name]):
                assert curves.shape == (3, layer.neurons)
                assert curves[:, -1].tolist() == [1.0, 1.0, 1.0]
        json.dumps(found.summary(), allow_nan=False)


class TestIndependence:
    def test_of_the_memory_budget(self, model, data) -> None:
        whole = slice_model(model, data)
        tight = slice_model(model, data, SlicingConfig(memory_budget_bytes=1))
        assert same(whole, tight)

    def test_of_the_batch_size(self, model, data) -> None:
        one = slice_model(model, data)
        other = slice_model(model, batches((2, 12, 12), size=7))
        for layer in one.layers:
            assert torch.equal(one.keep_masks[layer], other.keep_masks[layer])
            torch.testing.assert_close(one.curves[layer], other.curves[layer], rtol=0, atol=1e-5)

    def test_of_samples_beyond_the_cap(self, model, data) -> None:
        config = SlicingConfig(strategy="random", samples_per_category=8)
        few, more = slice_model(model, data[:2], config), slice_model(model, data, config)
        for layer in few.layers:
            torch.testing.assert_close(few.curves[layer], more.curves[layer], rtol=0, atol=1e-6)

    def test_the_model_stays_as_it_is(self, model, data) -> None:
        before = {name: tensor.clone() for name, tensor in model.graph_module.state_dict().items()}
        slice_model(model, data, SlicingConfig(metric="deeplift"))
        after = model.graph_module.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not model.graph_module.training


def test_flattened_landscapes_are_those_of_every_position(model, data) -> None:
    found = slice_model(model, data, SlicingConfig(landscape="flattened", metric="avg"))
    layer = model.sliceable_layers[0]
    values, labels = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    with torch.no_grad():
        features = model.graph_module.get_submodule("2")(
            model.graph_module.get_submodule("1")(model.graph_module.get_submodule("0")(values))
        )
    order = found.orders[layer.name][1].numpy()
    curve = reference.cka_prefix(features.flatten(2)[labels == 1].numpy(), order, "unbiased")
    np.testing.assert_allclose(found.curves[layer.name][1].numpy(), curve, rtol=0, atol=1e-6)


def test_layers_are_grouped_under_the_budget(model) -> None:
    def groups(budget: int) -> list[int]:
        found = layer_groups(model.sliceable_layers, samples=12, value_bytes=4, landscape="pooled", budget_bytes=budget)
        return [len(group) for group in found]

    assert groups(10**9) == [3]
    assert groups(1) == [1, 1, 1]
    assert groups(3 * 4 * 11 * 4) == [2, 1]


class TestBadData:
    def test_a_generator_is_refused_before_any_work(self, model, data) -> None:
        with pytest.raises(DatasetError, match="only once"):
            slice_model(model, (batch for batch in data))

    def test_too_few_samples_name_the_categories(self, model) -> None:
        with pytest.raises(DatasetError, match=r"Category 0, 1, 2: .* at least 4 samples, and there are 2"):
            slice_model(model, batches((2, 12, 12), samples=6))

    def test_should_stop_stops(self, model, data) -> None:
        calls = []

        def stop() -> bool:
            calls.append(1)
            return len(calls) > 2

        with pytest.raises(StoppedError):
            slice_model(model, data, should_stop=stop)

    def test_progress_is_reported_to_its_end(self, model, data) -> None:
        seen: list[tuple[str, int, int]] = []
        slice_model(model, data, on_progress=lambda *report: seen.append(report))
        assert ("score", 4, 4) in seen
        assert seen[-1] == ("coverage", 9, 9)


class TestFiles:
    @pytest.fixture
    def saved(self, model, data, tmp_path: Path) -> tuple[ModelSlice, Path]:
        found = slice_model(model, data, SlicingConfig(threshold=0.8))
        found.save(tmp_path / "slice.safetensors")
        return found, tmp_path / "slice.safetensors"

    def test_come_back_as_they_were(self, saved) -> None:
        found, path = saved
        loaded = ModelSlice.load(path)
        assert same(found, loaded)
        assert (loaded.config, loaded.model_fingerprint) == (found.config, found.model_fingerprint)
        assert loaded.layers == found.layers

    def test_hold_the_masks_for_tools_without_this_library(self, saved) -> None:
        found, path = saved
        tensors = load_file(path)
        assert all(torch.equal(tensors[f"keep_masks/{layer}"], keep) for layer, keep in found.keep_masks.items())

    @pytest.mark.parametrize("content", [b"", b"no slice", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
    def test_other_files_are_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "bad"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="no slice"):
            ModelSlice.load(path)

    @pytest.mark.parametrize(
        ("name", "change", "words"),
        [
            ("orders/0", torch.zeros_like, "permutation"),
            ("orders/0", lambda t: t + 1, "permutation"),
            ("orders/0", lambda t: t[:, :2], "fit together"),
            ("curves/0", lambda t: t[:1], "fit together"),
            ("curves/0", lambda t: t.float(), "fit together"),
        ],
    )
    def test_tampered_tensors_are_refused(self, saved, name: str, change, words: str) -> None:
        _, path = saved
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        save_file(tensors | {name: change(tensors[name]).contiguous()}, path, metadata)
        with pytest.raises(CheckpointError, match=words):
            ModelSlice.load(path)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": 1.01}, "threshold"),
        ({"fraction": 0.5}, "fraction"),
        ({"strategy": "global", "threshold": 0.9}, "threshold"),
        ({"strategy": "random", "fraction": 2.0}, "fraction"),
        ({"samples_per_category": 3}, "samples_per_category"),
        ({"seed": -1}, "seed"),
        ({"theta": 0.9}, "theta"),
    ],
)
def test_a_bad_config_names_its_field(values: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SlicingConfig.from_dict(values)
    assert caught.value.field == field


def test_an_unknown_word_names_its_field() -> None:
    """In a process of its own: here every type is checked before the config can."""
    code = """
from neusemslice.config import SlicingConfig
from neusemslice.errors import ConfigError
for field in ("strategy", "metric", "estimator", "landscape"):
    try:
        SlicingConfig.from_dict({field: "magic"})
    except ConfigError as error:
        print(error.field, "magic" in error.message, error.hint.startswith("Use one of"))
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.splitlines() == [f"{field} True True" for field in ("strategy", "metric", "estimator", "landscape")]


def test_configs_survive_json() -> None:
    config = SlicingConfig(strategy="categorywise", fraction=0.3, seed=4)
    assert SlicingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_smallest_network_that_can_be_sliced() -> None:
    model = trace(mlp(), torch.zeros(1, 6))
    found = slice_model(model, batches((6,)), SlicingConfig(threshold=1.0))
    assert {layer: keep.shape for layer, keep in found.keep_masks.items()} == {"0": (3, 9), "2": (3, 7)}
