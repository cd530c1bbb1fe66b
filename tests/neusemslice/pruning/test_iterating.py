"""Pruning in iterations: what becomes zero, when it ends, what it reports, and how it goes on after an interruption."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from neusemslice import (
    PruningConfig,
    SlicingConfig,
    TrainingConfig,
    evaluate,
    load_checkpoint,
    prune_weights,
    restructure,
    slice_model,
    trace,
)
from neusemslice.errors import CheckpointError, ConfigError, DatasetError, DivergedError, StoppedError, TargetError
from neusemslice.profiling import count_flops, count_parameters
from neusemslice.pruning.costs import flops_without_zeros
from neusemslice.pruning.methods import most_zeroed
from neusemslice.pruning.weights import prunable_weights
from neusemslice.tracing import SliceableModel
from tests.neusemslice.networks import randomised, vgg_like

METHODS = ["lamp", "global", "uniform+", "erk"]


@pytest.fixture(scope="module")
def model() -> SliceableModel:
    network = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3))
    return trace(randomised(network), torch.zeros(1, 6))


def labelled(model: SliceableModel, seed: int, samples: int = 90) -> list[tuple[Tensor, Tensor]]:
    """Samples in the categories that the network gives them."""
    inputs = torch.randn(samples, *model.input_shape, generator=torch.Generator().manual_seed(seed))
    return list(zip(inputs.split(32), model(inputs).argmax(1).split(32), strict=True))


@pytest.fixture(scope="module")
def data(model):
    return labelled(model, seed=1)


@pytest.fixture(scope="module")
def validation(model):
    return labelled(model, seed=2)


def zeros(network: fx.GraphModule) -> dict[str, Tensor]:
    return {weight.name: weight.tensor.detach() == 0 for weight in prunable_weights(network)}


def same(first: nn.Module, second: nn.Module) -> bool:
    tensors = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(one == other and torch.equal(a, b) for (one, a), (other, b) in tensors)


class TestIterations:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("amount", [0.05, 0.2])
    def test_leave_the_share_of_weights_that_the_papers_tables_show(self, model, method: str, amount: float) -> None:
        """1 - (1 - a)^NI, but for rounding: at most half a weight a layer, in each iteration."""
        report = prune_weights(model, PruningConfig(method=method, amount=amount, iterations=6)).report
        assert [record.iteration for record in report.iterations] == list(range(7))
        for record in report.iterations:
            expected = 1 - (1 - amount) ** record.iteration
            assert record.sparsity == pytest.approx(expected, abs=1.5 * record.iteration / report.weights)
        assert report.stopped_by == "iterations"
        assert report.result == 6

    @pytest.mark.parametrize("method", METHODS)
    def test_keep_what_was_zero_and_the_values_of_what_is_left(self, model, method: str) -> None:
        found = [prune_weights(model, PruningConfig(method=method, iterations=n)).model for n in (1, 2, 3)]
        before = dict(model.graph_module.named_parameters())
        for earlier, later in pairwise(found):
            for name, gone in zeros(earlier).items():
                assert zeros(later)[name][gone].all()
        for name, value in found[-1].named_parameters():
            left = ~zeros(found[-1]).get(name, torch.zeros_like(value, dtype=torch.bool))
            assert torch.equal(value[left], before[name][left])

    def test_leave_the_callers_model_as_it_is(self, model, data) -> None:
        before = {name: value.clone() for name, value in model.graph_module.state_dict().items()}
        prune_weights(model, PruningConfig(iterations=1, fine_tuning=TrainingConfig(epochs=1)), train=data)
        after = model.graph_module.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())

    def test_go_on_from_a_network_that_has_zeros(self, model) -> None:
        """A pruned network may be pruned again: twice two iterations are four."""
        config = PruningConfig(iterations=2)
        twice = prune_weights(prune_weights(model, config), config)
        assert same(twice.model, prune_weights(model, PruningConfig(iterations=4)).model)


class TestFineTuning:
    @pytest.mark.parametrize(
        "training",
        [
            TrainingConfig(epochs=2, optimizer="sgd", learning_rate=0.05, momentum=0.9, weight_decay=0.1),
            TrainingConfig(epochs=2, optimizer="adam", learning_rate=0.01, weight_decay=0.1),
            TrainingConfig(epochs=2, optimizer="adamw", learning_rate=0.01, weight_decay=0.1, clip_norm=0.5),
        ],
        ids=lambda training: training.optimizer,
    )
    def test_zeros_stay_zero_and_the_rest_learns(self, training: TrainingConfig) -> None:
        model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
        data = labelled(model, seed=1, samples=64)
        bare = prune_weights(model, PruningConfig(amount=0.3, iterations=1)).model
        tuned = prune_weights(model, PruningConfig(amount=0.3, iterations=1, fine_tuning=training), train=data).model
        for name, gone in zeros(bare).items():
            assert torch.equal(zeros(tuned)[name], gone)
            assert not torch.equal(tuned.get_parameter(name), bare.get_parameter(name))
        norm = "1.running_mean"
        assert not torch.equal(tuned.state_dict()[norm], bare.state_dict()[norm])

    def test_gets_accuracy_back(self, model, data, validation) -> None:
        config = PruningConfig(amount=0.4, iterations=3)
        bare = prune_weights(model, config, test=validation).report
        training = TrainingConfig(epochs=10, batch_size=16, learning_rate=0.01)
        tuned_config = PruningConfig(amount=0.4, iterations=3, fine_tuning=training)
        tuned = prune_weights(model, tuned_config, train=data, test=validation).report
        assert tuned.final.accuracy > bare.final.accuracy
        assert tuned.final.sparsity == pytest.approx(bare.final.sparsity, abs=0.01)
        assert tuned.final.fine_tuning_s > 0

    def test_a_teacher_changes_what_is_learnt(self, model, data) -> None:
        training = TrainingConfig(epochs=1)
        config = PruningConfig(iterations=1, fine_tuning=training)
        taught = PruningConfig(iterations=1, fine_tuning=training, distill=True)
        alone, own = (prune_weights(model, one, train=data).model for one in (config, taught))
        given = prune_weights(model, taught, train=data, teacher=model).model
        other = prune_weights(model, taught, train=data, teacher=randomised(nn.Sequential(nn.Linear(6, 3)), 5)).model
        assert same(own, given)
        assert not same(own, alone)
        assert not same(own, other)

    def test_that_diverges_is_an_error(self, model, data) -> None:
        training = TrainingConfig(epochs=3, optimizer="sgd", learning_rate=1e30)
        with pytest.raises(DivergedError) as caught:
            prune_weights(model, PruningConfig(iterations=2, fine_tuning=training), train=data)
        bare = prune_weights(model, PruningConfig(iterations=1)).model
        assert same(caught.value.network, bare)


class TestStops:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("sparsity", [0.05, 0.5])
    def test_a_sparsity_is_met_to_a_weight_a_layer(self, model, method: str, sparsity: float) -> None:
        report = prune_weights(model, PruningConfig(method=method, sparsity=sparsity)).report
        assert report.stopped_by == "sparsity"
        assert report.final.weights_zeroed == pytest.approx(sparsity * report.weights, abs=3.5)

    @pytest.mark.parametrize("drop", [0.0, 0.02, 0.1])
    def test_the_last_iteration_within_the_tolerance_is_the_result(self, model, validation, drop: float) -> None:
        pruned = prune_weights(model, PruningConfig(max_accuracy_drop=drop), validation=validation)
        report, start = pruned.report, evaluate(model, validation).accuracy
        within = [record.validation_accuracy >= start - drop - 1e-9 for record in report.iterations]
        assert within == [True] * (len(within) - 1) + [False]
        assert report.stopped_by == "max_accuracy_drop"
        assert report.result == len(within) - 2
        assert evaluate(pruned.model, validation).accuracy == report.final.validation_accuracy
        assert sum(int(gone.sum()) for gone in zeros(pruned.model).values()) == report.final.weights_zeroed

    def test_nothing_left_to_zero_ends_it(self, validation) -> None:
        """Whatever is lost is tolerated: it ends where a tenth of the survivors is less than half a weight."""
        small = trace(randomised(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))), torch.zeros(1, 2))
        data = labelled(small, seed=0)
        config = PruningConfig(method="global", amount=0.3, max_accuracy_drop=0.999)
        report = prune_weights(small, config, validation=data).report
        assert report.stopped_by == "exhausted"
        assert report.weights - report.final.weights_zeroed == 1

    def test_uniform_plus_ends_where_it_spares_what_is_left(self) -> None:
        model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
        data = [(torch.randn(9, 2, 12, 12), torch.arange(9) % 3)]
        config = PruningConfig(method="uniform+", amount=0.3, max_accuracy_drop=0.999)
        pruned = prune_weights(model, config, validation=data)
        assert pruned.report.stopped_by == "exhausted"
        weights = prunable_weights(pruned.model)
        assert weights[0].unmasked == weights[0].total
        assert weights[-1].unmasked >= round(0.2 * weights[-1].total)
        assert round(0.3 * sum(weight.unmasked for weight in weights)) > most_zeroed("uniform+", weights)

    @pytest.mark.parametrize("stop", [{"sparsity": 0.9}, {"iterations": 20}])
    def test_what_uniform_plus_cannot_reach_is_said_at_once(self, stop: dict) -> None:
        """Of 108 + 270 + 160 + 24 weights the first 108 and 5 of the last stay: 449 of 562 can go."""
        model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
        with pytest.raises(TargetError, match=r"uniform\+ can zero 449: .* reaches a sparsity of 79\.89%"):
            prune_weights(model, PruningConfig(method="uniform+", **stop))
        assert prune_weights(model, PruningConfig(method="global", **stop)).report.final.sparsity > 0.8


class TestReport:
    def test_of_a_sliced_network_tells_removed_from_zeroed(self, model, data) -> None:
        """CR = 1 - (1 - s)(1 - a)^NI on the weights, plus the biases that stay."""
        smaller = restructure(model, slice_model(model, data, SlicingConfig(threshold=0.95)))
        before = count_parameters(model.graph_module)
        pruned = prune_weights(smaller, PruningConfig(iterations=3), parameters_original=before, test=data)
        report = pruned.report
        assert report.parameters_original == before
        assert report.parameters == smaller.report.parameters_after == count_parameters(pruned.model)
        assert report.parameters_removed == before - report.parameters
        last = report.final
        assert last.compression_rate == pytest.approx((report.parameters_removed + last.weights_zeroed) / before)
        assert report.iterations[0].compression_rate == pytest.approx(smaller.report.compression_rate)
        biases = report.parameters - report.weights
        expected = 1 - (report.weights * 0.9**3 + biases) / before
        assert last.compression_rate == pytest.approx(expected, abs=3 / before)
        assert last.accuracy == evaluate(pruned.model, data).accuracy
        assert json.loads(json.dumps(report.to_dict()))["result"] == 3

    def test_products_with_zeros_are_counted_by_hand(self) -> None:
        """A 3 x 3 convolution gives 2 x 2 positions: 2 operations x 4 x weights. A linear layer has one position."""
        network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
        model = trace(randomised(network), torch.zeros(1, 2, 4, 4))
        whole = count_flops(model.graph_module, (2, 4, 4))
        assert whole == flops_without_zeros(model.graph_module, (2, 4, 4)) == 2 * 4 * 54 + 2 * 24
        model.graph_module.get_parameter("0.weight").data[0, 0, 0] = 0
        model.graph_module.get_parameter("2.weight").data[1, :5] = 0
        assert flops_without_zeros(model.graph_module, (2, 4, 4)) == 2 * 4 * 51 + 2 * 19

    def test_the_file_holds_the_zeros(self, model, tmp_path: Path) -> None:
        pruned = prune_weights(model, PruningConfig(sparsity=0.5))
        pruned.save(tmp_path / "pruned.safetensors")
        inputs = torch.randn(5, 6)
        assert torch.equal(load_checkpoint(tmp_path / "pruned.safetensors")(inputs), pruned.model(inputs))


class TestResuming:
    config = PruningConfig(
        amount=0.3, iterations=3, fine_tuning=TrainingConfig(epochs=2, optimizer="sgd", learning_rate=0.05)
    )

    @pytest.mark.parametrize("calls", [1, 4, 9, 14])
    def test_ends_like_an_undisturbed_run(self, model, data, validation, calls: int, tmp_path: Path) -> None:
        undisturbed = prune_weights(model, self.config, train=data, test=validation)
        asked = 0

        def stop() -> bool:
            nonlocal asked
            asked += 1
            return asked > calls

        with pytest.raises(StoppedError):
            prune_weights(model, self.config, train=data, test=validation, checkpoints=tmp_path, should_stop=stop)
        resumed = prune_weights(model, self.config, train=data, test=validation, checkpoints=tmp_path)
        assert same(resumed.model, undisturbed.model)
        for one, other in zip(resumed.report.iterations, undisturbed.report.iterations, strict=True):
            assert (one.accuracy, one.loss, one.sparsity) == (other.accuracy, other.loss, other.sparsity)

    def test_keeps_the_latest_iteration_and_does_not_repeat_it(self, model, tmp_path: Path, monkeypatch) -> None:
        first = prune_weights(model, PruningConfig(iterations=3), checkpoints=tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["iteration-3.safetensors"]
        monkeypatch.setattr("neusemslice.pruning.iterating.choose_survivors", None)
        again = prune_weights(model, PruningConfig(iterations=3), checkpoints=tmp_path)
        assert same(again.model, first.model)
        assert again.report == first.report

    def test_within_a_tolerance(self, model, validation, tmp_path: Path) -> None:
        config = PruningConfig(max_accuracy_drop=0.05)
        whole = prune_weights(model, config, validation=validation, checkpoints=tmp_path)
        again = prune_weights(model, config, validation=validation, checkpoints=tmp_path)
        assert same(again.model, whole.model)
        assert again.report == whole.report

    def test_another_prunings_folder_is_refused(self, model, tmp_path: Path) -> None:
        prune_weights(model, PruningConfig(iterations=1), checkpoints=tmp_path)
        with pytest.raises(CheckpointError, match="another pruning"):
            prune_weights(model, PruningConfig(iterations=2), checkpoints=tmp_path)


class TestRefusals:
    tuning = TrainingConfig(epochs=1)

    @pytest.mark.parametrize(
        ("config", "given", "field"),
        [
            (PruningConfig(iterations=1, fine_tuning=tuning), {}, "fine_tuning"),
            (PruningConfig(max_accuracy_drop=0.1), {}, "max_accuracy_drop"),
            (PruningConfig(iterations=1, fine_tuning=TrainingConfig(patience=1)), {"train": "data"}, "patience"),
            (PruningConfig(iterations=1), {"teacher": nn.Linear(6, 3)}, "teacher"),
            (
                PruningConfig(iterations=1, fine_tuning=tuning, distill=True),
                {"train": "data", "teacher": nn.Linear(6, 4)},
                "teacher",
            ),
            (
                PruningConfig(iterations=1, fine_tuning=tuning, distill=True),
                {"train": "data", "teacher": nn.Linear(7, 3)},
                "teacher",
            ),
            (PruningConfig(iterations=1), {"parameters_original": 10}, "parameters_original"),
        ],
    )
    def test_before_any_work(self, model, data, monkeypatch, config, given: dict, field: str) -> None:
        monkeypatch.setattr("neusemslice.pruning.iterating.choose_survivors", None)
        given = {name: data if value == "data" else value for name, value in given.items()}
        with pytest.raises(ConfigError) as caught:
            prune_weights(model, config, **given)
        assert caught.value.field == field
        assert caught.value.hint

    def test_data_that_reads_once_or_does_not_fit(self, model, validation) -> None:
        with pytest.raises(DatasetError, match="only once"):
            prune_weights(model, PruningConfig(max_accuracy_drop=0.1), validation=iter(validation))
        wrong = [(torch.zeros(4, 5), torch.zeros(4, dtype=torch.long))]
        with pytest.raises(DatasetError, match=r"takes samples of \(6,\)"):
            prune_weights(model, PruningConfig(iterations=1, fine_tuning=self.tuning), train=wrong)

    def test_a_regression_has_no_accuracy_to_hold(self, model) -> None:
        targets = [(torch.randn(4, 6), torch.randn(4, 3))]
        with pytest.raises(ConfigError, match="regression"):
            prune_weights(model, PruningConfig(max_accuracy_drop=0.1), validation=targets)
        report = prune_weights(model, PruningConfig(iterations=1), test=targets).report
        assert report.final.accuracy is None
        assert report.final.loss > 0
