"""Cuts that are searched for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neusemslice import ModelSlice, SlicingConfig, evaluate, restructure, slice_model, targets, trace
from neusemslice.errors import ConfigError, DatasetError, TargetError
from neusemslice.masking import mask_neurons
from neusemslice.profiling import count_parameters
from neusemslice.restructuring import parameters_after
from neusemslice.slicing import slice_many
from neusemslice.steps import TOLERANCE, cut_steps
from neusemslice.targets import MAX_EVALUATIONS
from neusemslice.tracing import SliceableModel
from tests.neusemslice.networks import randomised

STRATEGIES = ["semantic", "categorywise", "global", "random"]


@pytest.fixture(scope="module")
def model() -> SliceableModel:
    network = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
    return trace(randomised(network), torch.zeros(1, 6))


def labelled(model: SliceableModel, seed: int, samples: int = 90) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Samples in the categories that the network gives them."""
    inputs = torch.randn(samples, 6, generator=torch.Generator().manual_seed(seed))
    return list(zip(inputs.split(32), model(inputs).argmax(1).split(32), strict=True))


@pytest.fixture(scope="module")
def data(model):
    return labelled(model, seed=1)


@pytest.fixture(scope="module")
def validation(model):
    return labelled(model, seed=2)


def compression(model: SliceableModel, found: ModelSlice) -> float:
    return 1 - parameters_after(model, found.merged()) / count_parameters(model.graph_module)


class TestSteps:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_are_all_that_a_cut_can_choose(self, model, data, strategy: str) -> None:
        found = slice_model(model, data, SlicingConfig(strategy=strategy))

        def choice(cut: float) -> bytes:
            return b"".join(keep.numpy().tobytes() for keep in found.at(cut).keep_masks.values())

        of_steps = [choice(cut) for cut in cut_steps(found).tolist()]
        assert len(set(of_steps)) == len(of_steps)
        assert {choice(cut) for cut in np.linspace(1e-6, 1.0, 3000)} <= set(of_steps)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_remove_less_and_less(self, model, data, strategy: str) -> None:
        found = slice_model(model, data, SlicingConfig(strategy=strategy))
        rates = [compression(model, found.at(cut)) for cut in cut_steps(found).tolist()]
        assert rates == sorted(rates, reverse=True)

    def test_follow_the_increment(self, model, data) -> None:
        found = slice_model(model, data, SlicingConfig(increment=8))
        kept = {int(keep[0].sum()) for cut in cut_steps(found).tolist() for keep in found.at(cut).keep_masks.values()}
        assert kept <= {8, 16, 24}


class TestCompression:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("target", [0.1, 0.5, 0.8])
    def test_is_met_or_the_neighbours_are_named(self, model, data, strategy: str, target: float) -> None:
        analysis = slice_model(model, data, SlicingConfig(strategy=strategy))
        rates = [compression(model, analysis.at(cut)) for cut in cut_steps(analysis).tolist()]
        best = min(abs(rate - target) for rate in rates)
        config = SlicingConfig(strategy=strategy, target_compression=target)
        if best <= TOLERANCE:
            found = slice_model(model, data, config)
            assert abs(compression(model, found) - target) == pytest.approx(best)
            assert restructure(model, found).report.compression_rate == pytest.approx(compression(model, found))
        else:
            with pytest.raises(TargetError) as caught:
                slice_model(model, data, config)
            below = max(rate for rate in rates if rate < target)
            assert f"{below:.2%}" in caught.value.message

    def test_at_least_one_target_of_each_kind_is_met(self, model, data) -> None:
        """So that the test above compares something."""
        found = slice_model(model, data, SlicingConfig(target_compression=0.5))
        assert compression(model, found) == pytest.approx(0.5, abs=TOLERANCE)

    def test_the_config_carries_target_and_cut(self, model, data, tmp_path: Path) -> None:
        found = slice_model(model, data, SlicingConfig(target_compression=0.5))
        assert found.config.target_compression == 0.5
        assert found.config.cut == found.config.resolved_cut
        found.save(tmp_path / "slice")
        loaded = ModelSlice.load(tmp_path / "slice")
        assert loaded.config == found.config
        assert all(torch.equal(loaded.keep_masks[layer], keep) for layer, keep in found.keep_masks.items())
        again = slice_model(model, data, SlicingConfig.from_dict(json.loads(json.dumps(found.config.to_dict()))))
        assert all(torch.equal(again.keep_masks[layer], keep) for layer, keep in found.keep_masks.items())

    def test_cutting_elsewhere_drops_the_target(self, model, data) -> None:
        found = slice_model(model, data, SlicingConfig(target_compression=0.5)).at(0.9)
        assert found.config == SlicingConfig(threshold=0.9)

    def test_unreachable_names_both_sides(self) -> None:
        """Two neurons in the only layer: all or half of them."""
        model = trace(randomised(nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 3))), torch.zeros(1, 6))
        inputs, labels = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
        config = SlicingConfig(strategy="global", target_compression=0.2)
        with pytest.raises(TargetError, match=r"fraction=0\.25 removes 43\.48%.*fraction=0\.75 removes 0\.00%"):
            slice_model(model, [(inputs, labels)], config)


class TestAccuracy:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("drop", [0.0, 0.05, 0.3])
    def test_holds_for_the_slice_that_is_returned(self, model, data, validation, strategy: str, drop: float) -> None:
        config = SlicingConfig(strategy=strategy, max_accuracy_drop=drop)
        found = slice_model(model, data, config, validation=validation)
        before = evaluate(model, validation).accuracy
        assert evaluate(mask_neurons(model, found.merged()), validation).accuracy >= before - drop - 1e-9

    def test_takes_no_more_evaluations_than_promised(self, model, data, validation, monkeypatch) -> None:
        calls = []

        def counted(*args, **kwargs):
            calls.append(args)
            return evaluate(*args, **kwargs)

        monkeypatch.setattr(targets, "evaluate", counted)
        slice_model(model, data, SlicingConfig(max_accuracy_drop=0.05), validation=validation)
        assert 2 <= len(calls) <= MAX_EVALUATIONS + 1

    def test_a_larger_drop_allows_a_smaller_network(self, model, data, validation) -> None:
        configs = [SlicingConfig(max_accuracy_drop=drop) for drop in (0.0, 0.6)]
        gentle, fierce = slice_many(model, data, configs, validation=validation)
        assert compression(model, fierce) > compression(model, gentle) + 0.1

    def test_too_small_a_drop_says_what_the_gentlest_cut_leaves(self, model, data, validation) -> None:
        """The gentlest cut of this increment still halves every layer for each category."""
        found = slice_model(model, data, SlicingConfig(strategy="global"))
        broken = ModelSlice(
            SlicingConfig(max_accuracy_drop=0.0),
            found.model_fingerprint,
            found.contributions,
            found.orders,
            {layer: torch.ones_like(curves) for layer, curves in found.curves.items()},
            found.control_curves,
        )
        with pytest.raises(TargetError, match=r"Even the gentlest cut loses too much: threshold=0\.5 removes"):
            targets.resolve_targets(model, [broken], validation, "union", targets.Progress())

    def test_needs_validation_data_that_can_be_read_again(self, model, data, validation) -> None:
        config = SlicingConfig(max_accuracy_drop=0.1)
        with pytest.raises(ConfigError, match="validation") as caught:
            slice_model(model, data, config)
        assert caught.value.field == "max_accuracy_drop"
        with pytest.raises(DatasetError, match="only once"):
            slice_model(model, data, config, validation=iter(validation))


def test_configs_with_and_without_target_share_an_analysis(model, data, validation) -> None:
    configs = [
        SlicingConfig(threshold=0.9),
        SlicingConfig(target_compression=0.5),
        SlicingConfig(max_accuracy_drop=0.1),
    ]
    for config, found in zip(configs, slice_many(model, data, configs, validation=validation), strict=True):
        alone = slice_model(model, data, config, validation=validation)
        assert found.config == alone.config
        assert all(torch.equal(alone.keep_masks[layer], keep) for layer, keep in found.keep_masks.items())


def test_a_cut_that_has_not_been_searched_for_is_no_cut() -> None:
    with pytest.raises(ConfigError, match="has not been searched for"):
        _ = SlicingConfig(target_compression=0.5).cut


@pytest.mark.parametrize("branches", ["union", "scatter"])
def test_a_compression_is_that_of_the_way_the_slice_is_cut(branches: str) -> None:
    """On a residual network the two ways remove different shares at the same cut."""
    model = trace(wide_residual(), torch.zeros(1, 2, 8, 8))
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(24, 2, 8, 8, generator=generator), torch.arange(24) % 3)]
    free = slice_model(model, data, SlicingConfig(metric="avg"))
    cuts = cut_steps(free).tolist()
    whole = count_parameters(model.graph_module)
    target = 1 - parameters_after(model, free.at(cuts[len(cuts) // 4]).merged(), branches) / whole
    config = SlicingConfig(metric="avg", target_compression=target)
    slice_ = slice_model(model, data, config, branches=branches)
    removed = restructure(model, slice_, branches=branches).report.compression_rate
    assert abs(removed - target) <= TOLERANCE
    other = restructure(model, slice_, branches="scatter" if branches == "union" else "union")
    assert abs(other.report.compression_rate - removed) > 2 * TOLERANCE


def wide_residual() -> nn.Module:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.out = nn.Conv2d(2, 32, 3, padding=1), nn.Linear(32, 3)
            self.blocks = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = x + torch.relu(block(x))
            return self.out(x.mean((2, 3)))

    return randomised(Wide())
