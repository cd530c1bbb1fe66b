"""Training in place: what moves, what stays, how it resumes, and how it ends when it goes wrong."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from neusemslice import evaluate, trace
from neusemslice.copying import copy_graph
from neusemslice.cutting import cut_neurons
from neusemslice.errors import CheckpointError, ConfigError, DatasetError, DivergedError, StoppedError
from neusemslice.neuron_parameters import neuron_parameters, parameter_share
from neusemslice.training import (
    Batch,
    InMemory,
    Joined,
    Subset,
    as_samples,
    batches_of,
    cross_entropy,
    distillation,
    train,
)
from neusemslice.training_config import TrainingConfig
from tests.neusemslice.graphs import Residual
from tests.neusemslice.networks import randomised, vgg_like


def samples(count: int = 60, shape: tuple[int, ...] = (2, 12, 12), categories: int = 3) -> InMemory:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % categories
    inputs = torch.randn(count, *shape, generator=generator) + labels.view(-1, *[1] * len(shape))
    return InMemory(inputs, labels)


def network() -> fx.GraphModule:
    return copy_graph(trace(vgg_like(), torch.zeros(1, 2, 12, 12)).graph_module)


def state(network: nn.Module) -> dict[str, Tensor]:
    named = (*network.named_parameters(), *network.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}


OPTIMIZERS = [
    TrainingConfig(epochs=3, batch_size=16, optimizer="sgd", learning_rate=0.05),
    TrainingConfig(epochs=3, batch_size=16, optimizer="adam", learning_rate=0.01),
    TrainingConfig(epochs=3, batch_size=16, optimizer="sgd", learning_rate=0.05, weight_decay=0.1),
    TrainingConfig(epochs=3, batch_size=16, optimizer="adam", learning_rate=0.01, weight_decay=0.1, clip_norm=0.5),
    TrainingConfig(epochs=3, batch_size=16, optimizer="adamw", learning_rate=0.01, weight_decay=0.1, schedule="cosine"),
]


def test_one_step_of_sgd_is_the_textbooks() -> None:
    linear = nn.Sequential(nn.Linear(1, 2, bias=False))
    linear[0].weight.data = torch.tensor([[1.0], [0.0]])
    data = InMemory(torch.tensor([[2.0], [2.0]]), torch.tensor([1, 1]))
    config = TrainingConfig(epochs=1, batch_size=2, optimizer="sgd", learning_rate=0.5, momentum=0.0)
    found = train(linear, data, config)
    probability = torch.tensor([2.0, 0.0]).softmax(0)[0]  # of the wrong category, both samples
    expected = torch.tensor([[1.0], [0.0]]) - 0.5 * 2 * probability * torch.tensor([[1.0], [-1.0]])
    torch.testing.assert_close(linear[0].weight.data, expected)
    assert found.curve[0].loss == pytest.approx(float(-torch.log(1 - probability)))


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda config: f"{config.optimizer}-{config.weight_decay}")
def test_frozen_entries_are_the_same_bits_and_the_others_move(config: TrainingConfig) -> None:
    model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
    keep = {layer.name: torch.arange(layer.neurons) % 2 == 0 for layer in model.sliceable_layers}
    masks = neuron_parameters(cut_neurons(model, keep))
    trained = copy_graph(model.graph_module)
    before = state(trained)
    train(trained, samples(), config, trainable=masks)
    after = state(trained)
    for name, tensor in before.items():
        frozen = ~masks[name] if name in masks else torch.ones_like(tensor, dtype=torch.bool)
        assert torch.equal(after[name][frozen], tensor[frozen]), name
        if name in masks:
            assert bool((after[name] != tensor)[masks[name]].any()), name


def test_entries_anywhere_in_a_tensor_can_be_frozen() -> None:
    trained = network()
    name, weight = next((name, p) for name, p in trained.named_parameters() if p.ndim == 2)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    before = state(trained)
    train(trained, samples(), OPTIMIZERS[2], trainable={name: mask})
    after = state(trained)
    assert torch.equal(after[name] != before[name], mask)
    assert all(torch.equal(after[other], before[other]) for other in before if other != name)


def test_norms_that_train_whole_learn_the_samples_statistics() -> None:
    trained = network()
    before = state(trained)
    train(trained, samples(), OPTIMIZERS[0])
    after = state(trained)
    moved = [name for name in before if "running" in name and not torch.equal(after[name], before[name])]
    assert len(moved) == 4


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda config: f"{config.optimizer}-{config.weight_decay}")
@pytest.mark.parametrize("partly", [False, True])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path, config: TrainingConfig, partly: bool) -> None:
    start = network()
    masks = None
    if partly:
        masks = {name: torch.arange(p.numel()).view(p.shape) % 3 > 0 for name, p in start.named_parameters()}
    whole = copy.deepcopy(start)
    undisturbed = train(whole, samples(), config, trainable=masks)
    reports: list[int] = []

    def interrupt() -> bool:
        return len(reports) > 6

    broken = copy.deepcopy(start)
    with pytest.raises(StoppedError):
        train(
            broken,
            samples(),
            config,
            trainable=masks,
            checkpoint=tmp_path / "state",
            on_progress=lambda *_: reports.append(0),
            should_stop=interrupt,
        )
    resumed = copy.deepcopy(start)
    steps: list[tuple[str, int, int]] = []
    found = train(
        resumed,
        samples(),
        config,
        trainable=masks,
        checkpoint=tmp_path / "state",
        on_progress=lambda *report: steps.append(report),
    )
    assert steps[0] == ("train", 4, 12)
    assert [record.loss for record in found.curve] == [record.loss for record in undisturbed.curve]
    assert all(torch.equal(tensor, state(whole)[name]) for name, tensor in state(resumed).items())


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    train(network(), samples(), OPTIMIZERS[0], checkpoint=tmp_path / "state")
    with pytest.raises(CheckpointError, match="another training"):
        train(network(), samples(30), OPTIMIZERS[0], checkpoint=tmp_path / "state")
    (tmp_path / "state").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="damaged"):
        train(network(), samples(), OPTIMIZERS[0], checkpoint=tmp_path / "state")


def test_a_training_that_diverges_says_so_and_leaves_the_last_good_weights(tmp_path: Path) -> None:
    calls: list[int] = []

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        calls.append(0)
        return cross_entropy(network, batch) * (float("nan") if len(calls) > 6 else 1)

    trained, good = network(), network()
    with pytest.raises(DivergedError, match="epoch 2 the loss became NaN") as caught:
        train(trained, samples(), OPTIMIZERS[0], loss=loss)
    train(good, samples(), TrainingConfig(**OPTIMIZERS[0].to_dict() | {"epochs": 1}))
    assert caught.value.last_good == 1
    assert all(torch.equal(tensor, state(good)[name]) for name, tensor in state(trained).items())
    assert not trained.training


def test_weights_that_overflow_are_found_though_the_loss_was_finite() -> None:
    trained = network()
    config = TrainingConfig(epochs=1, batch_size=60, optimizer="sgd", learning_rate=1e38)
    before = state(trained)
    with pytest.raises(DivergedError, match="a weight became NaN"):
        train(trained, samples(), config, loss=lambda network, batch: cross_entropy(network, batch) * 1e6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(trained).items())


def test_weights_so_large_that_the_network_overflows_are_found() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(288, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    trained = trace(plain, torch.zeros(1, 2, 12, 12)).graph_module
    config, before = TrainingConfig(epochs=1, batch_size=60, optimizer="sgd", learning_rate=1e25), state(trained)
    with pytest.raises(DivergedError, match="an output became NaN"):
        train(trained, samples(), config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(trained).items())


def test_with_patience_the_best_epoch_on_validation_data_counts() -> None:
    trained, data = network(), samples()
    wrong = InMemory(data.inputs, (data.labels + 1) % 3)  # the better the training, the worse it does here
    config = TrainingConfig(epochs=9, batch_size=16, learning_rate=0.01, patience=2)
    seen: list[dict[str, Tensor]] = []

    def measure(network: nn.Module) -> dict[str, float]:
        seen.append(state(network))
        return {"seen": float(len(seen))}

    found = train(trained, data, config, validation=batches_of(wrong, 32), measure=measure)
    losses = [record.validation_loss for record in found.curve]
    assert found.best_epoch == 1 + losses.index(min(losses))
    assert len(losses) == found.best_epoch + 2 < 9
    assert found.curve[1].measured == {"seen": 2.0}
    assert all(torch.equal(tensor, seen[found.best_epoch - 1][name]) for name, tensor in state(trained).items())


def test_a_student_of_itself_has_nothing_to_learn_and_another_gets_closer_to_its_teacher() -> None:
    teacher, student, data = network(), network(), samples()
    batch = Batch(data.inputs, data.labels, torch.arange(60))
    assert float(distillation(teacher, weight=1.0)(teacher, batch)) == pytest.approx(0, abs=1e-6)
    by_labels = distillation(teacher, weight=0.0)(teacher, batch)
    torch.testing.assert_close(by_labels, cross_entropy(teacher, batch))
    for parameter in student.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    distance = distillation(teacher, weight=1.0)
    first = float(distance(student, batch))
    config = TrainingConfig(epochs=5, batch_size=20, learning_rate=0.003)
    train(student, data, config, loss=distance)
    assert float(distance(student, batch)) < first / 2


def test_training_teaches_and_leaves_modes_and_gradients_as_they_were() -> None:
    trained, data = network(), samples()
    trained.requires_grad_(requires_grad=False)
    before = evaluate(trained, batches_of(data, 32)).loss
    train(trained, data, TrainingConfig(epochs=15, batch_size=16, learning_rate=0.01))
    assert evaluate(trained, batches_of(data, 32)).loss < before / 2
    assert not trained.training
    assert not any(parameter.requires_grad for parameter in trained.parameters())


@pytest.mark.parametrize(
    ("trainable", "match"),
    [
        ({"no.weight": torch.ones(1, dtype=torch.bool)}, "no parameter 'no.weight'"),
        ({"0.bias": torch.ones(2, dtype=torch.bool)}, "parameter has shape"),
        ({"0.bias": torch.zeros(6, dtype=torch.bool)}, "Nothing is left to train"),
    ],
)
def test_masks_that_fit_nothing_are_refused(trainable: dict[str, Tensor], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        train(network(), samples(), TrainingConfig(), trainable=trainable)


def test_what_cannot_be_trained_is_refused_before_work() -> None:
    with pytest.raises(ConfigError, match="one sample has no variance"):
        train(network(), samples(), TrainingConfig(batch_size=1))
    with pytest.raises(ConfigError, match="patience"):
        train(network(), samples(), TrainingConfig(patience=1))
    with pytest.raises(DatasetError, match="no sample"):
        train(network(), InMemory(torch.zeros(0, 2, 12, 12), torch.zeros(0, dtype=torch.long)), TrainingConfig())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", 0.0),
        ("momentum", 1.0),
        ("weight_decay", -0.1),
        ("clip_norm", 0.0),
        ("patience", 0),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_refused_by_their_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**{field: value})
    assert caught.value.field == field


def test_an_unknown_word_names_its_field() -> None:
    """In a process of its own: here every type is checked before the config can."""
    code = """
from neusemslice.errors import ConfigError
from neusemslice.training_config import TrainingConfig
for field in ("optimizer", "schedule", "lion"):
    try:
        TrainingConfig.from_dict({field: "magic"})
    except ConfigError as error:
        print(error.field, error.hint.split()[0])
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.split() == ["optimizer", "Use", "schedule", "Use", "lion", "Known:"]


def test_samples_can_be_joined_chosen_and_read_in_any_order() -> None:
    data = samples(10)
    joined = Joined([Subset(data, torch.tensor([7, 2])), data])
    rows = torch.tensor([3, 0, 11, 1])
    assert torch.equal(joined.take(rows), data.inputs[[1, 7, 9, 2]])
    assert torch.equal(joined.labels[rows], data.labels[[1, 7, 9, 2]])
    model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
    collected = as_samples(batches_of(data, 4), model)
    assert torch.equal(collected.take(torch.arange(10)), data.inputs)
    with pytest.raises(DatasetError, match="categories 0 to 2"):
        as_samples([(data.inputs, data.labels + 1)], model)


def test_the_parameters_of_kept_neurons_are_those_that_a_removal_keeps_rows_of() -> None:
    model = trace(randomised(Residual()), torch.zeros(1, 2, 8, 8))
    keep = {layer.name: torch.arange(layer.neurons) < 2 for layer in model.sliceable_layers}
    masks = neuron_parameters(cut_neurons(model, keep))
    parameters = dict(model.graph_module.named_parameters())
    assert {name: mask.shape for name, mask in masks.items()} == {name: p.shape for name, p in parameters.items()}
    for name, mask in masks.items():
        rows = mask.reshape(len(mask), -1)
        kept = len(mask) if name.startswith("fc") else 2
        assert rows.all(1).sum() == kept
        assert rows.any(1).sum() == kept
    assert 0 < parameter_share(masks) < 1
