"""Cuts under a budget of bytes or of time. Times are a made-up clock's: nothing here depends on the machine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from neusemslice import SlicingConfig, budgets, restructure, slice_model, trace
from neusemslice.budgets import MAX_PROBES, stored_bytes
from neusemslice.checkpoint import checkpoint_bytes, save_checkpoint
from neusemslice.errors import ConfigError, TargetError
from neusemslice.profiling import count_parameters
from neusemslice.restructuring import shapes_after
from neusemslice.steps import cut_steps
from neusemslice.tracing import SliceableModel
from tests.neusemslice.networks import functional, mlp, randomised, vgg_like


@pytest.fixture(scope="module")
def model() -> SliceableModel:
    network = nn.Sequential(nn.Linear(6, 60), nn.ReLU(), nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 3))
    return trace(randomised(network), torch.zeros(1, 6))


@pytest.fixture(scope="module")
def data():
    inputs = torch.randn(90, 6, generator=torch.Generator().manual_seed(1))
    return [(inputs, torch.arange(90) % 3)]


@pytest.fixture
def clock(monkeypatch) -> Callable[[Callable[[nn.Module], float]], list[nn.Module]]:
    """Makes a forward pass take as many seconds as a function of the network says; lists the timed networks."""

    def install(seconds: Callable[[nn.Module], float]) -> list[nn.Module]:
        timed: list[nn.Module] = []

        def measure(network: nn.Module, input_shape: tuple[int, ...], *, batch_size: int) -> float:
            timed.append(network)
            return seconds(network) * batch_size

        monkeypatch.setattr(budgets, "measure_latency", measure)
        return timed

    return install


class TestFileSize:
    @pytest.mark.parametrize(
        ("network", "shape"),
        [(mlp, (6,)), (vgg_like, (2, 12, 12)), (functional, (2, 12, 12))],
        ids=lambda value: getattr(value, "__name__", ""),
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_is_that_of_the_file(self, network, shape, dtype, tmp_path: Path) -> None:
        model = trace(network(), torch.zeros(1, *shape))
        graph = model.graph_module.to(dtype)
        save_checkpoint(graph, shape, tmp_path / "whole.safetensors")
        assert checkpoint_bytes(graph, shape) == (tmp_path / "whole.safetensors").stat().st_size

    def test_needs_no_values(self, model) -> None:
        keep = {"0": torch.arange(60) < 10}
        shapes = shapes_after(model, keep)
        assert next(shapes.parameters()).device.type == "meta"
        assert checkpoint_bytes(shapes, (6,)) == checkpoint_bytes(restructure(model, keep).model, (6,))


class TestSize:
    @pytest.mark.parametrize("strategy", ["semantic", "global", "categorywise", "random"])
    @pytest.mark.parametrize("budget", [9_000, 14_000, 10**9])
    def test_the_file_fits_and_the_next_gentler_cut_would_not(self, model, data, strategy, budget, tmp_path) -> None:
        found = slice_model(model, data, SlicingConfig(strategy=strategy, target_size_bytes=budget))
        result = restructure(model, found)
        result.save(tmp_path / "small.safetensors")
        assert (tmp_path / "small.safetensors").stat().st_size <= budget
        assert stored_bytes(result.model, (6,)) <= budget
        gentler = [cut for cut in cut_steps(found).tolist() if cut > found.config.cut]
        assert budget == 10**9 or gentler
        if gentler:
            assert stored_bytes(shapes_after(model, found.at(gentler[0]).merged()), (6,)) > budget

    def test_the_config_carries_budget_and_cut(self, model, data) -> None:
        found = slice_model(model, data, SlicingConfig(target_size_bytes=14_000))
        assert found.config.cut == found.config.resolved_cut
        again = slice_model(model, data, SlicingConfig.from_dict(found.config.to_dict()))
        assert again.config == found.config
        assert found.at(0.9).config == SlicingConfig(threshold=0.9)

    def test_what_no_cut_can_fit_is_said_before_the_analysis(self, model) -> None:
        with pytest.raises(TargetError, match=r"With one neuron in each layer the checkpoint has .*=1,000\.") as caught:
            slice_model(model, [], SlicingConfig(target_size_bytes=1_000))
        assert f"{stored_bytes(model.graph_module, (6,)):,}" in caught.value.hint

    def test_what_this_analysis_cannot_fit_says_what_its_fiercest_cut_leaves(self, model, data) -> None:
        """A step of the scan of 50 neurons keeps both layers nearly whole."""
        config = SlicingConfig(increment=50, target_size_bytes=9_000)
        with pytest.raises(TargetError, match=r"Even the fiercest cut .* removes .* leaves a checkpoint of [\d,]+ by"):
            slice_model(model, data, config)


class TestLatency:
    @pytest.mark.parametrize("budget_ms", [600.0, 1500.0, 3000.0])
    def test_is_met_by_little_less_than_the_most_that_would(self, model, data, clock, budget_ms: float) -> None:
        """A millisecond for each parameter: 3,623 of them in the whole network."""
        timed = clock(lambda network: count_parameters(network) / 1000)
        found = slice_model(model, data, SlicingConfig(target_latency_ms=budget_ms))
        taken = count_parameters(restructure(model, found).model)
        assert taken <= budget_ms
        possible = [count_parameters(shapes_after(model, found.at(cut).merged())) for cut in cut_steps(found).tolist()]
        assert taken >= max(size for size in possible if size <= budget_ms) - 0.02 * 3623
        assert len(timed) <= budgets.ROUNDS * (MAX_PROBES + 4)

    def test_of_a_batch(self, model, data, clock) -> None:
        clock(lambda network: count_parameters(network) / 1000)
        config = SlicingConfig(target_latency_ms=4 * 1500.0, latency_batch_size=4)
        found = slice_model(model, data, config)
        assert found.config.cut == slice_model(model, data, SlicingConfig(target_latency_ms=1500.0)).config.cut

    def test_a_network_that_is_fast_enough_stays_whole(self, model, data, clock) -> None:
        clock(lambda network: 1e-6)
        found = slice_model(model, data, SlicingConfig(target_latency_ms=1.0))
        assert all(bool(keep.all()) for keep in found.merged().values())

    def test_a_cut_that_was_fast_once_only_is_not_taken(self, model, data, clock) -> None:
        """Every size is a third slower from its second measurement on: what is returned is fast then, too."""
        seen: dict[int, int] = {}

        def seconds(network: nn.Module) -> float:
            size = count_parameters(network)
            seen[size] = seen.get(size, 0) + 1
            return size / 1000 * (1.33 if seen[size] > budgets.ROUNDS else 1.0)

        clock(seconds)
        found = slice_model(model, data, SlicingConfig(target_latency_ms=1500.0))
        assert 1.33 * count_parameters(restructure(model, found).model) <= 1500

    def test_one_slow_round_does_not_count(self, model, data, clock) -> None:
        calls = 0

        def seconds(network: nn.Module) -> float:
            nonlocal calls
            calls += 1
            return count_parameters(network) / 1000 * (50 if calls % budgets.ROUNDS == 0 else 1)

        clock(seconds)
        found = slice_model(model, data, SlicingConfig(target_latency_ms=1500.0))
        assert 1300 <= count_parameters(restructure(model, found).model) <= 1500

    def test_what_no_cut_can_reach_is_said_before_the_analysis(self, model, clock) -> None:
        clock(lambda network: 0.005 + count_parameters(network) * 1e-6)
        with pytest.raises(TargetError, match=r"one neuron in each layer the network takes 5\.02 ms on cpu") as caught:
            slice_model(model, [], SlicingConfig(target_latency_ms=4.0))
        assert "8.62 ms" in caught.value.hint

    def test_what_this_analysis_cannot_reach_says_what_its_fiercest_cut_takes(self, model, data, clock) -> None:
        clock(lambda network: count_parameters(network) / 1000)
        config = SlicingConfig(increment=50, target_latency_ms=600.0)
        with pytest.raises(TargetError, match=r"No cut is fast enough for certain: .* removes .* and takes"):
            slice_model(model, data, config)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"target_size_bytes": 0}, "target_size_bytes"),
        ({"target_latency_ms": 0.0}, "target_latency_ms"),
        ({"target_latency_ms": float("inf")}, "target_latency_ms"),
        ({"target_latency_ms": float("nan")}, "target_latency_ms"),
        ({"target_latency_ms": 1.0, "latency_batch_size": 0}, "latency_batch_size"),
        ({"latency_batch_size": 8}, "latency_batch_size"),
        ({"target_size_bytes": 10, "target_latency_ms": 1.0}, "target_latency_ms"),
        ({"target_size_bytes": 10, "threshold": 0.9}, "target_size_bytes"),
        ({"target_size_bytes": 10, "max_accuracy_drop": 0.1}, "max_accuracy_drop"),
        ({"strategy": "deeparc", "target_size_bytes": 10}, "target_size_bytes"),
        ({"strategy": "deeparc", "target_latency_ms": 1.0}, "target_latency_ms"),
    ],
)
def test_a_bad_config_names_its_field(values: dict, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SlicingConfig(**values)
    assert caught.value.field == field
