"""From contributions to critical neurons."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from neusemslice import ModelSlice, SlicingConfig, score_neurons, slice_model, trace
from neusemslice.errors import CheckpointError, ConfigError, DatasetError, StoppedError
from neusemslice.features import Plan
from neusemslice.reading import Reader
from neusemslice.selection import first_crossing, keep_counts, keep_first
from neusemslice.similarity import working_bytes
from neusemslice.slicing import slice_many
from tests.neusemslice.memory import PeakMemory
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

    @pytest.mark.parametrize(("increment", "kept"), [(1, 2), (2, 2), (3, 6), (4, 7), (7, 7), (50, 7)])
    def test_looks_at_multiples_of_the_increment_and_at_all(self, increment: int, kept: int) -> None:
        curve = torch.tensor([[0.2, 0.91, 0.5, 0.6, 0.8, 0.97, 1.0]], dtype=torch.float64)
        assert first_crossing(curve, 0.9, increment).tolist() == [kept]


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
    @pytest.mark.parametrize("landscape", ["pooled", "flattened"])
    def test_of_the_memory_budget(self, model, data, landscape: str) -> None:
        """The smallest budget that is accepted: a pass over the data for most layers and categories."""
        whole = slice_model(model, data, SlicingConfig(landscape=landscape))
        with pytest.raises(ConfigError) as caught:
            slice_model(model, data, SlicingConfig(landscape=landscape, memory_budget_bytes=1))
        assert caught.value.field == "memory_budget_bytes"
        spatial = [layer.spatial if landscape == "flattened" else 1 for layer in model.sliceable_layers]
        needed = [
            SAMPLES // 3 * layer.neurons * positions * 4 + working_bytes(SAMPLES // 3, layer.neurons, positions)
            for layer, positions in zip(model.sliceable_layers, spatial, strict=True)
        ]
        tight = slice_model(model, data, SlicingConfig(landscape=landscape, memory_budget_bytes=max(needed)))
        assert same(whole, tight)

    def test_of_the_other_configs(self, model, data) -> None:
        """One analysis for many configs gives each the slice that it gets alone, to the last bit."""
        configs = [
            SlicingConfig(threshold=0.8, metric="avg"),
            SlicingConfig(threshold=0.9, metric="avg", estimator="biased"),
            SlicingConfig(strategy="categorywise", metric="deeplift", fraction=0.3),
            SlicingConfig(strategy="random", seed=3, samples_per_category=7),
            SlicingConfig(strategy="global", landscape="flattened", seed=3),
            SlicingConfig(threshold=0.8, increment=2),
            SlicingConfig(strategy="global", metric="var"),
        ]
        for config, found in zip(configs, slice_many(model, data, configs), strict=True):
            alone = slice_model(model, data, config)
            assert found.config == config
            assert same(found, alone)
            assert all(torch.equal(found.contributions[layer], alone.contributions[layer]) for layer in alone.layers)

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


class TestPasses:
    """Two places, of 10 neurons at 8 positions and of 30, three categories of 40 samples, float32."""

    VALUES: ClassVar = {"a": torch.zeros(1, 10, 8), "b": torch.zeros(1, 30, 1)}

    def passes(self, budget: int, landscape: str = "pooled") -> list[list[tuple[str, int]]]:
        plan = Plan([40, 40, 40], lambda labels: labels, landscape)
        return plan.passes(self.VALUES, budget)

    def test_one_if_all_fits(self) -> None:
        everything = [(place, group) for place in "ab" for group in range(3)]
        assert self.passes(10**9) == [everything]

    def test_split_a_layer_by_category(self) -> None:
        """Room for one category of b, and for two of a."""
        budget = 40 * 30 * 4 + working_bytes(40, 30, 1)
        found = self.passes(budget)
        assert found[-2:] == [[("b", 1)], [("b", 2)]]
        assert [part for parts in found for part in parts] == [(place, group) for place in "ab" for group in range(3)]
        for parts in found:
            held = sum(40 * self.VALUES[place].shape[1] * 4 for place, _ in parts)
            assert held + max(working_bytes(40, self.VALUES[place].shape[1], 1) for place, _ in parts) <= budget

    def test_too_small_a_budget_says_what_is_needed(self) -> None:
        needed = 40 * 30 * 4 + working_bytes(40, 30, 1)
        with pytest.raises(ConfigError, match=f"'b' on the 40 samples .* {needed:,} bytes.*samples_per_category"):
            self.passes(needed - 1)

    def test_flattened_outputs_count_their_positions(self) -> None:
        needed = 40 * 80 * 4 + working_bytes(40, 10, 8)
        assert self.passes(needed, "flattened")[:3] == [[("a", 0)], [("a", 1)], [("a", 2)]]
        with pytest.raises(ConfigError, match="'a'"):
            self.passes(needed - 1, "flattened")


class TestMemory:
    def peak(self, model, data, budget: int) -> int:
        config = SlicingConfig(
            landscape="flattened", samples_per_category=100, metric="avg", memory_budget_bytes=budget
        )
        batches = [tensor for batch in data for tensor in batch]
        with PeakMemory(*batches, *model.graph_module.state_dict().values()) as memory:
            slice_model(model, data, config)
        return memory.peak

    def test_stays_within_the_budget(self, model) -> None:
        """Beside a forward pass of one batch."""
        data = batches((2, 12, 12), samples=400)
        with PeakMemory() as forward:
            Reader(model).read(data[0][0])
        budget = max(
            100 * layer.neurons * layer.spatial * 4 + working_bytes(100, layer.neurons, layer.spatial)
            for layer in model.sliceable_layers
        )
        tight, ample = self.peak(model, data, budget), self.peak(model, data, 2**40)
        assert tight <= budget + forward.peak
        assert tight < 0.8 * ample

    def test_does_not_grow_with_the_data(self, model) -> None:
        few, many = (self.peak(model, batches((2, 12, 12), samples=samples), 2**40) for samples in (320, 960))
        assert many <= few + 10_000

    def test_reading_ends_when_all_categories_are_full(self, model) -> None:
        """One pass to score, and of the second only the first batches."""
        read = []

        class Counting:
            def __iter__(self):
                for number, batch in enumerate(batches((2, 12, 12))):
                    read.append(number)
                    yield batch

        slice_model(model, Counting(), SlicingConfig(samples_per_category=5))
        assert read == [0, 1, 2, 3, 0, 0]


class TestRegression:
    """Every output is a category, and every sample belongs to all of them."""

    def test_compares_all_samples_for_each_output(self, model, data) -> None:
        targets = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(2))
        regression = [(x, y) for (x, _), y in zip(data, targets.split(16), strict=True)]
        found = slice_model(model, regression, SlicingConfig(metric="taylor", samples_per_category=40))
        layer = model.sliceable_layers[-1]
        with torch.no_grad():
            values = Reader(model).read(torch.cat([x for x, _ in data])[:40]).values[layer.name]
        features = layer.per_neuron(values).mean(2).numpy()
        orders = found.orders[layer.name]
        assert not torch.equal(orders[0], orders[1])
        for output in range(3):
            curve = reference.cka_prefix(features, orders[output].numpy(), "unbiased")
            np.testing.assert_allclose(found.curves[layer.name][output].numpy(), curve, rtol=0, atol=1e-6)

    def test_holds_the_samples_once(self, model, data) -> None:
        """The budget that holds them once is enough for all outputs."""
        regression = [(x, torch.randn(len(x), 3)) for x, _ in data]
        needed = [
            SAMPLES * layer.neurons * 4 + working_bytes(SAMPLES, layer.neurons, 1) for layer in model.sliceable_layers
        ]
        found = slice_model(model, regression, SlicingConfig(memory_budget_bytes=max(needed)))
        assert same(found, slice_model(model, regression))


class TestBadData:
    def test_a_generator_is_refused_before_any_work(self, model, data) -> None:
        with pytest.raises(DatasetError, match="only once"):
            slice_model(model, (batch for batch in data))

    def test_too_few_samples_name_the_categories(self, model) -> None:
        with pytest.raises(DatasetError, match=r"Category 0, 1, 2: .* at least 4 samples, and there are 2"):
            slice_model(model, batches((2, 12, 12), samples=6))

    def test_data_that_shrinks_is_noticed(self, model, data) -> None:
        class Shrinking:
            passes = 0  # the first is the question whether it can be read again

            def __iter__(self):
                self.passes += 1
                return iter(data if self.passes <= 2 else data[:2])

        with pytest.raises(DatasetError, match="fewer samples when it was read again"):
            slice_model(model, Shrinking())

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
        ({"increment": 0}, "increment"),
        ({"strategy": "global", "increment": 2}, "increment"),
        ({"target_compression": 1.0}, "target_compression"),
        ({"target_compression": 0.0}, "target_compression"),
        ({"max_accuracy_drop": -0.1}, "max_accuracy_drop"),
        ({"max_accuracy_drop": 1.0}, "max_accuracy_drop"),
        ({"target_compression": 0.5, "max_accuracy_drop": 0.1}, "max_accuracy_drop"),
        ({"target_compression": 0.5, "threshold": 0.9}, "target_compression"),
        ({"strategy": "deeparc", "target_compression": 0.5}, "target_compression"),
        ({"strategy": "deeparc", "fraction": 0.5}, "fraction"),
        ({"resolved_cut": 0.5}, "resolved_cut"),
        ({"target_compression": 0.5, "resolved_cut": 0.0}, "threshold"),
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
