"""Increments: a further task, and earlier ones that stay as they are."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from neusemslice import SlicingConfig, load_checkpoint, trace
from neusemslice.copying import copy_graph
from neusemslice.errors import (
    CapacityError,
    CheckpointError,
    ConfigError,
    DatasetError,
    DivergedError,
    SliceMismatchError,
    StoppedError,
    UnsupportedModelError,
)
from neusemslice.increment_config import IncrementConfig
from neusemslice.increments import Incremented, IncrementMemory, TaskFree, learn_increment, learning
from neusemslice.increments.heads import Task, grow_head, task_view, whole_task
from neusemslice.increments.isolating import isolate
from neusemslice.increments.ownership import critical_neurons, own_entries
from neusemslice.masking import mask_neurons
from neusemslice.progress import Progress
from neusemslice.slicing import slice_model
from neusemslice.tracing import SliceableModel
from neusemslice.training_config import TrainingConfig
from tests.neusemslice.graphs import Dense, MobileBlock, Residual
from tests.neusemslice.networks import functional, mlp, randomised, vgg_like
from tests.neusemslice.test_restructuring import random_keep

IMAGES = (2, 12, 12)
GLOBAL = SlicingConfig(strategy="global", metric="avg", fraction=0.5)
SHORT = TrainingConfig(epochs=2, batch_size=16, learning_rate=0.01)
ISOLATED = IncrementConfig(slicing=GLOBAL, training=SHORT, decision_directions=4)


def lesson(first: int, categories: int, shape: tuple[int, ...], samples: int = 48, seed: int = 1):
    """Batches of categories that differ in their mean, from `first` on."""
    generator = torch.Generator().manual_seed(seed + first)
    labels = torch.arange(samples) % categories
    inputs = torch.randn(samples, *shape, generator=generator)
    inputs += (labels - 1.0).view(-1, *[1] * len(shape))
    return list(zip(inputs.split(16), (labels + first).split(16), strict=True))


def images(first: int, categories: int, seed: int = 1):
    return lesson(first, categories, IMAGES, seed=seed)


@pytest.fixture(scope="module")
def model() -> SliceableModel:
    return trace(vgg_like(), torch.zeros(1, *IMAGES))


@pytest.fixture(scope="module")
def learned(model: SliceableModel) -> Incremented:
    return learn_increment(model, images(0, 3), images(3, 2), ISOLATED, evaluation=images(0, 3) + images(3, 2))


class TestHeads:
    @pytest.mark.parametrize(("make", "shape"), [(mlp, (6,)), (vgg_like, IMAGES), (functional, IMAGES)])
    def test_a_grown_network_gives_what_it_gave_to_the_last_bit(
        self, make: Callable[[], nn.Module], shape: tuple[int, ...]
    ) -> None:
        """But for a softmax at the end, which has more to share out; twice, and through its own view."""
        model = trace(make(), torch.zeros(1, *shape))
        task, inputs = whole_task(model), torch.randn(5, *shape)
        expected = task_view(model, task)(inputs)
        for categories in (2, 4):
            network = copy_graph(model.graph_module)
            grow_head(network, model.logits_node, categories, seed=0)
            before, model = model.categories, trace(network, inputs)
            assert model.categories == before + categories
        assert torch.equal(task_view(model, task)(inputs), expected)
        assert whole_task(model).heads[1:] == ("head_1", "head_2")

    def test_outputs_that_are_no_linear_layer_cannot_grow(self) -> None:
        network = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        with pytest.raises(UnsupportedModelError, match="cannot grow"):
            whole_task(trace(network, torch.zeros(1, 2, 8, 8)))

    def test_first_weights_depend_on_the_seed_alone(self) -> None:
        model = trace(mlp(), torch.zeros(1, 6))
        drawn = []
        for seed in (0, 0, 1):
            network = copy_graph(model.graph_module)
            torch.rand(1)
            drawn.append(network.get_parameter(f"{grow_head(network, model.logits_node, 2, seed)}.weight"))
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])


class TestIsolating:
    @pytest.mark.parametrize("level", ["none", "bias", "norms", "least_squares"])
    @pytest.mark.parametrize(
        ("make", "shape"),
        [
            (mlp, (6,)),
            (vgg_like, IMAGES),
            (functional, IMAGES),
            (Residual, (2, 8, 8)),
            (MobileBlock, (2, 8, 8)),
            (Dense, (2, 8, 8)),
        ],
    )
    def test_whatever_the_others_do_changes_no_bit(self, make, shape, level) -> None:
        """Every entry that is not the task's own is moved: weights, biases, norms and their statistics."""
        model = trace(randomised(make()), torch.zeros(1, *shape))
        view = task_view(model, whole_task(model))
        network, keep = copy_graph(model.graph_module), random_keep(model)
        own = isolate(network, view, keep, {}, lesson(0, 3, shape), level, Progress())
        inputs = torch.randn(16, *shape)
        expected = network(inputs)
        generator = torch.Generator().manual_seed(0)
        moved = 0
        with torch.no_grad():
            for name, tensor in (*network.named_parameters(), *network.named_buffers()):
                if name in own:
                    other = tensor + torch.rand(tensor.shape, generator=generator)
                    tensor.copy_(torch.where(own[name], tensor, other))
                    moved += int((~own[name]).sum())
        assert moved > 0
        assert torch.equal(network(inputs), expected)

    def test_what_is_kept_computes_what_the_restructured_network_computes(self, model: SliceableModel) -> None:
        network, keep = copy_graph(model.graph_module), random_keep(model)
        isolate(network, task_view(model, whole_task(model)), keep, {}, images(0, 3), "none", Progress())
        inputs = torch.randn(16, *IMAGES)
        torch.testing.assert_close(network(inputs), mask_neurons(model, keep)(inputs), rtol=1e-4, atol=1e-5)


OPTIMIZERS = {
    "sgd with momentum": {"optimizer": "sgd", "momentum": 0.9},
    "sgd with decay and clipping": {"optimizer": "sgd", "weight_decay": 0.01, "clip_norm": 0.5},
    "adam with decay": {"optimizer": "adam", "weight_decay": 0.01},
    "adamw with clipping": {"optimizer": "adamw", "weight_decay": 0.1, "clip_norm": 1.0, "schedule": "cosine"},
}


def outputs_before_training(monkeypatch: pytest.MonkeyPatch, inputs: torch.Tensor) -> list[torch.Tensor]:
    """Filled with what networks give just before they are trained."""
    seen = []
    original = learning.train

    def spied(network: nn.Module, *args, **kwargs):
        seen.append(network(inputs).detach())
        return original(network, *args, **kwargs)

    monkeypatch.setattr(learning, "train", spied)
    return seen


class TestIsolated:
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    @pytest.mark.parametrize("make", [vgg_like, Residual])
    def test_old_outputs_are_the_same_to_the_last_bit(self, make, optimizer, monkeypatch) -> None:
        """Networks with batch norms and, the first, dropout."""
        shape = IMAGES if make is vgg_like else (2, 8, 8)
        inputs = torch.randn(32, *shape)
        before = outputs_before_training(monkeypatch, inputs)
        model = trace(randomised(make()), torch.zeros(1, *shape))
        slicing = replace(GLOBAL, fraction=0.5 if make is vgg_like else 0.2)
        config = replace(ISOLATED, slicing=slicing, training=replace(SHORT, **OPTIMIZERS[optimizer]))
        result = learn_increment(model, lesson(0, 3, shape), lesson(3, 2, shape), config)
        assert torch.equal(result.model(inputs)[:, :3], before[0][:, :3])
        assert not torch.equal(result.model(inputs)[:, 3:], before[0][:, 3:])
        assert result.report.drift == 0
        assert result.report.training.curve[-1].loss < result.report.training.curve[0].loss

    def test_a_resumed_increment_ends_with_the_same_weights(self, model: SliceableModel, tmp_path: Path) -> None:
        whole = learn_increment(model, images(0, 3), images(3, 2), ISOLATED)
        steps = []

        def stop() -> bool:
            return steps.count("train") > 4

        arguments = {"checkpoint": tmp_path, "on_progress": lambda stage, done, total: steps.append(stage)}
        with pytest.raises(StoppedError):
            learn_increment(model, images(0, 3), images(3, 2), ISOLATED, should_stop=stop, **arguments)
        assert (tmp_path / "training.safetensors").exists()
        steps.clear()
        resumed = learn_increment(model, images(0, 3), images(3, 2), ISOLATED, **arguments)
        assert "score" not in steps
        states = whole.model.state_dict(), resumed.model.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert whole.memory.model_fingerprint == resumed.memory.model_fingerprint
        with pytest.raises(CheckpointError, match="another increment"):
            learn_increment(model, images(0, 3), images(3, 2), replace(ISOLATED, seed=1), **arguments)

    def test_tasks_follow_each_other_through_files(self, learned: Incremented, tmp_path: Path) -> None:
        """Each earlier task's outputs stay, their networks can be taken out, and capacity shrinks."""
        learned.save(tmp_path / "two.safetensors", tmp_path / "two.memory")
        loaded = trace(load_checkpoint(tmp_path / "two.safetensors"), torch.zeros(1, *IMAGES))
        memory = IncrementMemory.load(tmp_path / "two.memory")
        third = learn_increment(loaded, None, images(5, 2), ISOLATED, memory=memory)
        inputs = torch.randn(32, *IMAGES)
        assert torch.equal(third.model(inputs)[:, :5], learned.model(inputs)[:, :5])
        assert third.report.categories == (5, 7)
        assert [item.task.first for item in third.memory.tasks] == [0, 3, 5]
        free = [sum(layer.free for layer in result.report.capacity.values()) for result in (learned, third)]
        assert free[0] > free[1]
        assert learned.report.free_parameters > third.report.free_parameters
        for number, outputs in enumerate((slice(0, 3), slice(3, 5), slice(5, 7))):
            alone = third.task_network(number)
            torch.testing.assert_close(alone.model(inputs), third.model(inputs)[:, outputs], rtol=1e-4, atol=1e-4)
        sizes = [third.task_network(number).report.parameters_after for number in range(3)]
        assert sizes[0] < sizes[2] <= third.report.parameters

    def test_accuracies_are_counted_by_hand(self, model: SliceableModel, learned: Incremented) -> None:
        report, data = learned.report, images(0, 3) + images(3, 2)
        inputs, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
        logits = learned.model(inputs)
        decided = learned.classify()(inputs)
        for accuracy, own, columns in zip(
            report.accuracies, (labels < 3, labels >= 3), (range(3), range(3, 5)), strict=True
        ):
            known = logits[own][:, list(columns)].argmax(1) + columns[0] == labels[own]
            assert accuracy.with_task == float(known.double().mean())
            assert accuracy.vote == float((logits[own].argmax(1) == labels[own]).double().mean())
            assert accuracy.task_free == float((decided[own] == labels[own]).double().mean())
            assert accuracy.through_slice == accuracy.with_task
        before = float((model(inputs[labels < 3]).argmax(1) == labels[labels < 3]).double().mean())
        assert report.accuracies[0].before == before
        assert report.forgetting == pytest.approx(before - report.accuracies[0].with_task)
        assert [set(record.measured) for record in report.training.curve] == [{"task_0", "task_1"}] * 2
        assert report.average["task_free"] == pytest.approx(sum(a.task_free for a in report.accuracies) / 2)

    def test_the_model_that_was_given_stays_as_it_is(self, model: SliceableModel) -> None:
        before = {name: tensor.clone() for name, tensor in model.graph_module.state_dict().items()}
        learn_increment(model, images(0, 3), images(3, 2), ISOLATED)
        after = model.graph_module.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_a_training_that_diverges_leaves_the_last_good_network(self, model: SliceableModel) -> None:
        config = replace(ISOLATED, training=replace(SHORT, optimizer="sgd", learning_rate=1e30))
        with pytest.raises(DivergedError) as caught:
            learn_increment(model, images(0, 3), images(3, 2), config)
        inputs = torch.randn(8, *IMAGES)
        assert bool(torch.isfinite(caught.value.network(inputs)).all())

    def test_the_cut_may_be_searched_for(self) -> None:
        """Half of the parameters are to be left out of each task's network."""
        layers = nn.Linear(6, 60), nn.ReLU(), nn.Linear(60, 40), nn.ReLU(), nn.Linear(40, 3)
        wide = trace(randomised(nn.Sequential(*layers)), torch.zeros(1, 6))
        config = replace(ISOLATED, slicing=replace(GLOBAL, fraction=None, target_compression=0.5))
        result = learn_increment(wide, lesson(0, 3, (6,)), lesson(3, 2, (6,)), config)
        assert result.task_network(0).report.compression_rate == pytest.approx(0.5, abs=0.02)

    def test_nothing_free_is_refused(self, model: SliceableModel) -> None:
        everything = replace(ISOLATED, slicing=replace(GLOBAL, fraction=1.0))
        with pytest.raises(CapacityError, match="No free neuron reaches the outputs"):
            learn_increment(model, images(0, 3), images(3, 2), everything)


BASELINES = ("semantic", "semantic+replay", "global", "categorywise", "deeparc", "retrain", "replay")


class TestBaselines:
    @pytest.mark.parametrize("method", BASELINES)
    def test_critical_neurons_and_old_outputs_keep_their_parameters(self, model: SliceableModel, method: str) -> None:
        slicing = None
        if method in ("semantic", "semantic+replay"):
            slicing = SlicingConfig(metric="avg", threshold=0.5)
        elif method == "deeparc":
            slicing = SlicingConfig(strategy="deeparc", threshold=0.3)
        config = IncrementConfig(method=method, slicing=slicing, training=SHORT)
        old = None if method == "retrain" else images(0, 3)
        data = images(0, 3) + images(3, 2)
        result = learn_increment(model, old, images(3, 2), config, evaluation=data)
        changed = {}
        frozen = {}
        if config.freezes:
            found = slice_model(model, images(0, 3), config.slicing)
            frozen = own_entries(model, critical_neurons(found))
            assert any(bool(mask.any()) for mask in frozen.values())
        for name, parameter in model.graph_module.named_parameters():
            moved = result.model.get_parameter(name) != parameter
            changed[name] = moved.any()
            if frozen:
                assert not bool((moved & frozen[name]).any())
        assert any(changed.values())
        assert result.report.drift > 0
        assert result.report.accuracies[1].task_free is None
        exemplars = result.memory.exemplars
        assert (exemplars is not None) == config.replays
        if exemplars is not None:
            assert len(exemplars) == 3 * 2 + 2 * 3
            assert result.memory.bytes_kept()["exemplars"] == len(exemplars) * (4 * 2 * 12 * 12 + 8)

    def test_replay_goes_on_from_its_memory(self, model: SliceableModel, tmp_path: Path) -> None:
        config = IncrementConfig(method="replay", training=SHORT, replay_fraction=0.25)
        first = learn_increment(model, images(0, 3), images(3, 2), config)
        first.save(tmp_path / "model", tmp_path / "memory")
        second = learn_increment(
            trace(load_checkpoint(tmp_path / "model"), torch.zeros(1, *IMAGES)),
            None,
            images(5, 2),
            config,
            memory=IncrementMemory.load(tmp_path / "memory"),
        )
        assert second.memory.exemplars.labels.unique().tolist() == list(range(7))
        with pytest.raises(SliceMismatchError, match="nothing to decide"):
            second.classify()


class TestRefusals:
    @pytest.mark.parametrize(
        ("new", "words"),
        [
            (images(2, 2), r"overlap those that the network knows, 0 to 2: \[2\]"),
            (images(4, 2), "no sample has the label 3"),
            (lesson(3, 2, (3, 12, 12)), "takes samples of"),
            ([], "no samples"),
            (iter(images(3, 2)), "only once"),
        ],
    )
    def test_new_data_that_does_not_fit(self, model: SliceableModel, new, words: str) -> None:
        with pytest.raises(DatasetError, match=words):
            learn_increment(model, images(0, 3), new, ISOLATED, on_progress=lambda *_: pytest.fail("work has begun"))

    def test_data_and_memory_that_do_not_belong_together(self, model: SliceableModel, learned: Incremented) -> None:
        with pytest.raises(ConfigError, match="there are none"):
            learn_increment(model, None, images(3, 2), ISOLATED)
        with pytest.raises(ConfigError, match="nothing looks at them"):
            learn_increment(learned.traced, images(0, 3), images(5, 2), ISOLATED, memory=learned.memory)
        with pytest.raises(SliceMismatchError, match="another network"):
            learn_increment(model, None, images(3, 2), ISOLATED, memory=learned.memory)
        other = IncrementConfig(method="global", training=SHORT)
        with pytest.raises(ConfigError, match="is of method='isolated'"):
            learn_increment(learned.traced, None, images(5, 2), other, memory=learned.memory)
        with pytest.raises(DatasetError, match="no sample of the categories 3 to 4"):
            learn_increment(model, images(0, 3), images(3, 2), ISOLATED, evaluation=images(0, 3))
        with pytest.raises(ConfigError, match="no task 2"):
            learned.task_network(2)

    @pytest.mark.parametrize(
        ("values", "field"),
        [
            ({"method": "replay", "slicing": GLOBAL.to_dict()}, "slicing"),
            ({"method": "semantic", "slicing": GLOBAL.to_dict()}, "slicing"),
            ({"slicing": {"strategy": "deeparc"}}, "slicing"),
            ({"slicing": {"max_accuracy_drop": 0.1}}, "slicing"),
            ({"replay_fraction": 0.1}, "replay_fraction"),
            ({"method": "replay", "replay_fraction": 0.0}, "replay_fraction"),
            ({"decision_directions": 0}, "decision_directions"),
            ({"seed": -1}, "seed"),
        ],
    )
    def test_a_config_that_contradicts_itself(self, values, field: str) -> None:
        with pytest.raises(ConfigError) as caught:
            IncrementConfig.from_dict(values)
        assert caught.value.field == field

    def test_a_config_is_written_and_read(self) -> None:
        for config in (ISOLATED, IncrementConfig(method="replay"), IncrementConfig(method="deeparc", seed=3)):
            assert IncrementConfig.from_dict(config.to_dict()) == config
        assert IncrementConfig().slicing == SlicingConfig(threshold=0.9)
        assert IncrementConfig(method="semantic+replay").replay_fraction == 0.1
        with pytest.raises(ConfigError, match="no field"):
            IncrementConfig.from_dict({"methods": "x"})

    @pytest.mark.parametrize("content", [b"no file", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
    def test_a_damaged_memory_is_refused(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "memory").write_bytes(content)
        with pytest.raises(CheckpointError, match="no memory"):
            IncrementMemory.load(tmp_path / "memory")


def test_a_memory_is_written_and_read(learned: Incremented, tmp_path: Path) -> None:
    learned.memory.save(tmp_path / "memory")
    loaded = IncrementMemory.load(tmp_path / "memory")
    assert [item.task for item in loaded.tasks] == [item.task for item in learned.memory.tasks]
    for one, other in zip(loaded.tasks, learned.memory.tasks, strict=True):
        assert one.accuracy == other.accuracy
        assert all(torch.equal(one.kept[layer], other.kept[layer]) for layer in other.kept)
    inputs = torch.randn(32, *IMAGES)
    assert torch.equal(TaskFree(learned.traced, loaded)(inputs), learned.classify()(inputs))
    assert loaded.bytes_kept() == learned.memory.bytes_kept()
    kept = learned.memory.bytes_kept()
    assert sum(kept.values()) < (tmp_path / "memory").stat().st_size
    assert kept["neurons"] == 2 * 3  # bytes of 6, 5 and 8 neurons, for two tasks
    with pytest.raises(SliceMismatchError, match="fingerprints"):
        TaskFree(trace(vgg_like(), torch.zeros(1, *IMAGES)), loaded)
    assert Task(3, 2, ("head_1",)).labels == range(3, 5)
