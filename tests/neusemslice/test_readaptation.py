"""Re-adaptation: what trains and what does not, on what, and how the result is judged."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neusemslice import AttackConfig, ModelSlice, ReadaptConfig, SlicingConfig, ValidRange, readapt, slice_model, trace
from neusemslice.checkpoint import load_checkpoint, read_checkpoint_metadata
from neusemslice.errors import ConfigError, DatasetError, DivergedError, SliceMismatchError, StoppedError
from neusemslice.evaluation import evaluate
from neusemslice.neuron_parameters import parameter_share
from neusemslice.progress import Progress
from neusemslice.readaptation import attack, trainable_parameters
from neusemslice.readaptation.lots import Given, gather
from neusemslice.readaptation.pairs import Pairs
from neusemslice.tracing import SliceableModel
from neusemslice.training import Batch, InMemory, train
from neusemslice.training_config import TrainingConfig
from tests.neusemslice.graphs import MobileBlock, Residual
from tests.neusemslice.networks import mlp, randomised, vgg_like

ATTACK = AttackConfig(epsilons=(0.1,))
SHORT = TrainingConfig(epochs=2, batch_size=16, learning_rate=0.01)


def blobs(count: int, seed: int, shift: float = 0.0) -> InMemory:
    """Three categories of 6 values around their own mean."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    means = torch.eye(6)[:3] * 2
    return InMemory(means[labels] + 0.5 * torch.randn(count, 6, generator=generator) + shift, labels)


def as_batches(samples: InMemory, size: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(samples.inputs.split(size), samples.labels.split(size), strict=True))


@pytest.fixture(scope="module")
def model() -> SliceableModel:
    """A network that knows the blobs."""
    network = mlp()
    train(network, blobs(240, 0), TrainingConfig(epochs=8, batch_size=32, learning_rate=0.03))
    return trace(network, torch.zeros(1, 6))


def changed(model: SliceableModel, network: nn.Module) -> dict[str, torch.Tensor]:
    """For each parameter, True for the entries whose bits changed."""
    before = dict(model.graph_module.named_parameters())
    return {name: (value != before[name]).detach() for name, value in network.named_parameters()}


def slice_of(model: SliceableModel, keep: dict[str, list[int]], strategy: str = "global") -> ModelSlice:
    """A slice that keeps these neurons, for every category."""
    data = as_batches(blobs(60, 0)) if model.input_shape == (6,) else as_batches(images(30))
    own = {"deeparc": {"threshold": 0.5}, "semantic": {"threshold": 0.9}}.get(strategy, {"fraction": 0.5})
    found = slice_model(model, data, SlicingConfig(strategy=strategy, **own))  # type: ignore[arg-type]
    masks = {}
    for layer, order in found.orders.items():
        masks[layer] = torch.zeros(order.shape, dtype=torch.bool)
        masks[layer][:, keep[layer]] = True
    vars(found)["keep_masks"] = masks
    return found


def images(count: int) -> InMemory:
    generator = torch.Generator().manual_seed(0)
    return InMemory(torch.randn(count, 2, 8, 8, generator=generator), torch.arange(count) % 3)


def test_only_critical_neurons_and_the_last_layer_change(model: SliceableModel) -> None:
    """Adam with momentum from its moments and weight decay: the others keep their bits."""
    slice_ = slice_of(model, {"0": [0, 4], "2": [6]})
    training = replace(SHORT, weight_decay=0.01, epochs=3)
    config = ReadaptConfig(method="global", attack=ATTACK, samples=60, training=training)
    found = readapt(model, as_batches(blobs(240, 0)), config, slice_=slice_)
    moved = changed(model, found.model)
    assert moved["0.weight"].any(1).nonzero()[:, 0].tolist() == [0, 4]
    assert moved["0.bias"].nonzero()[:, 0].tolist() == [0, 4]
    assert moved["2.weight"].any(1).nonzero()[:, 0].tolist() == [6]
    assert moved["2.bias"].nonzero()[:, 0].tolist() == [6]
    assert moved["4.weight"].any(1).all()
    report = found.report
    assert report.trained_parameters == 2 * 7 + 10 + 24
    assert report.training_parameter_ratio == pytest.approx(48 / 157)
    assert all(parameter.requires_grad for parameter in found.model.parameters())


def test_each_method_trains_its_share(model: SliceableModel) -> None:
    """Full: all. Deeparc with its second place redundant: the first layer. Both of two: the rows of both."""
    neurons = slice_of(model, {"0": [1, 2, 3], "2": [0]}, "semantic")
    layers = slice_of(model, {"0": list(range(9)), "2": []}, "deeparc")
    chosen = {"0": [1, 2, 3], "2": [0]}
    data = as_batches(blobs(120, 0))
    for method, slices, expected in (
        ("full", None, {"0": list(range(9)), "2": list(range(7))}),
        ("semantic", neurons, chosen),
        ("deeparc", layers, {"0": list(range(9)), "2": []}),
        ("semantic+deeparc", [layers, neurons], {"0": [1, 2, 3], "2": []}),
    ):
        config = ReadaptConfig(method=method, attack=ATTACK, samples=60, training=SHORT)  # type: ignore[arg-type]
        found = readapt(model, data, config, slice_=slices)
        moved = changed(model, found.model)
        for layer, own in expected.items():
            rows = set(moved[f"{layer}.weight"].any(1).nonzero()[:, 0].tolist())
            assert rows <= set(own)  # a neuron that never fires learns nothing
            assert bool(rows) == bool(own)
        assert moved["4.bias"].all()
        assert found.report.trained_parameters == 7 * len(expected["0"]) + 10 * len(expected["2"]) + 24
        assert len(found.report.training.curve) == 2


def test_branches_that_are_added_up_train_their_own_choice() -> None:
    """The stem's neuron 1 and the second block's neuron 2 are added to others of their stream, which stay."""
    model = trace(Residual().eval(), torch.zeros(1, 2, 8, 8))
    keep = {"stem.0": [1], "first.0": [0], "first.3": [0, 5], "second.0": [3], "second.2": [2]}
    masks = trainable_parameters(model, [slice_of(model, keep)])
    for layer, own in keep.items():
        assert masks[f"{layer}.weight"].flatten(1).all(1).nonzero()[:, 0].tolist() == own
        assert int(masks[f"{layer}.weight"].flatten(1).any(1).sum()) == len(own)
    assert masks["stem.1.weight"].nonzero()[:, 0].tolist() == [1]
    assert masks["first.4.bias"].nonzero()[:, 0].tolist() == [0, 5]
    assert masks["fc.weight"].all()


def test_layers_of_a_redundant_block_stay_though_their_stream_trains() -> None:
    model = trace(Residual().eval(), torch.zeros(1, 2, 8, 8))
    keep = {layer.name: list(range(layer.neurons)) for layer in model.sliceable_layers}
    masks = trainable_parameters(model, [slice_of(model, keep | {"second.0": [], "second.2": []}, "deeparc")])
    still = {name for name, mask in masks.items() if not mask.any()}
    assert still == {"second.0.weight", "second.0.bias", "second.2.weight", "second.2.bias"}
    assert all(mask.all() for name, mask in masks.items() if name not in still)


def test_norms_of_frozen_neurons_keep_their_statistics() -> None:
    """A mobile block: norms and the depthwise convolution of the expansion's neurons."""
    model = trace(randomised(MobileBlock()), torch.zeros(1, 2, 8, 8))
    keep = {layer.name: list(range(layer.neurons)) for layer in model.sliceable_layers}
    slice_ = slice_of(model, keep | {"expand.0": [2, 5]})
    config = ReadaptConfig(method="global", attack=ATTACK, samples=24, training=SHORT)
    found = readapt(model, as_batches(images(48)), config, slice_=slice_)
    moved = changed(model, found.model)
    before, after = model.graph_module.state_dict(), found.model.state_dict()
    for norm in ("expand.1", "depthwise.1"):
        assert torch.equal(after[f"{norm}.running_mean"], before[f"{norm}.running_mean"])
        assert moved[f"{norm}.weight"].nonzero()[:, 0].tolist() == [2, 5]
    assert moved["depthwise.0.weight"].flatten(1).any(1).nonzero()[:, 0].tolist() == [2, 5]
    assert not torch.equal(after["project.1.running_mean"], before["project.1.running_mean"])


def test_the_loss_is_that_of_formula_8_and_its_gradient_by_hand() -> None:
    """One linear layer: dCE/dW is (softmax - onehot) x^T, of the clean sample and of its counterpart."""
    network = nn.Linear(2, 2, bias=False)
    network.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    clean = InMemory(torch.tensor([[1.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1]))
    other = InMemory(torch.tensor([[5.0, 0.0], [-1.0, 2.0]]), torch.tensor([1, 0]))
    rows = torch.tensor([1])
    loss = Pairs.of(clean, other).loss(network, Batch(clean.take(rows), clean.labels[rows], rows))
    loss.backward()
    expected_loss, expected = 0.0, torch.zeros(2, 2)
    for x, label in (((0.0, 3.0), 1), ((-1.0, 2.0), 0)):
        powers = [math.exp(x[0]), math.exp(2 * x[1])]
        shares = [power / sum(powers) for power in powers]
        expected_loss -= math.log(shares[label])
        for category in range(2):
            slope = shares[category] - (category == label)
            expected[category] += torch.tensor([slope * value for value in x])
    assert float(loss.detach()) == pytest.approx(expected_loss)
    torch.testing.assert_close(network.weight.grad, expected)


@pytest.mark.parametrize(("clean", "other"), [(5, 2), (2, 5)])
def test_the_shorter_lot_begins_again(clean: int, other: int) -> None:
    lots = [InMemory(torch.arange(float(count))[:, None], torch.arange(count) % 2) for count in (clean, other)]
    pairs = Pairs.of(*lots)
    assert len(pairs.clean) == len(pairs.counterparts) == 5
    for lot, paired in zip(lots, (pairs.clean, pairs.counterparts), strict=True):
        assert paired.take(torch.arange(5))[:, 0].tolist() == [row % len(lot) for row in range(5)]


def test_what_was_attacked_is_learnt_and_all_figures_can_be_checked(model: SliceableModel) -> None:
    """Each accuracy is computed again from the outside; the repaired network is attacked afresh."""
    data, test = blobs(240, 0), blobs(90, 1)
    unit = ValidRange(torch.full((6,), -2.0), torch.full((6,), 4.0))
    strong = AttackConfig(epsilons=(0.2,))
    training = TrainingConfig(epochs=20, batch_size=20, learning_rate=0.02)
    config = ReadaptConfig(method="full", attack=strong, samples=90, training=training)
    found = readapt(model, as_batches(data), config, test=as_batches(test), valid_range=unit)
    told = found.report.accuracies
    assert told.original < 0.6
    assert told.retrained > told.original + 0.2
    assert told.clean_before == evaluate(model, as_batches(test)).accuracy
    assert told.clean_after == evaluate(found.model, as_batches(test)).accuracy
    assert (told.test_samples, told.attacked_others) == (90, 90)
    for network, target, expected in (
        (model.graph_module, model.graph_module, told.original_others),
        (model.graph_module, found.model, told.transferred),
        (found.model, found.model, told.reattack),
    ):
        attacked = attack(network, test, strong, unit, seed=0)
        assert expected == evaluate(target, as_batches(attacked)).accuracy
    assert told.reattack < told.transferred
    assert told.original_others < told.transferred
    assert found.report.training.curve[-1].measured["retrained_accuracy"] == told.retrained
    assert found.report.training.curve[-1].measured["clean_accuracy"] == told.clean_after
    assert found.report.seconds > found.report.training.seconds > 0


def test_new_samples_take_the_attacked_ones_place(model: SliceableModel) -> None:
    """Drifted samples are learnt, and the old ones are not forgotten."""
    new, test = blobs(60, 2, shift=-2.0), blobs(90, 1)
    training = TrainingConfig(epochs=40, batch_size=20, learning_rate=0.02)
    config = ReadaptConfig(method="full", samples=100, training=training)
    found = readapt(model, as_batches(blobs(240, 0)), config, new=as_batches(new), test=as_batches(test))
    told = found.report.accuracies
    assert told.original == evaluate(model, as_batches(new)).accuracy
    assert told.retrained == evaluate(found.model, as_batches(new)).accuracy > told.original + 0.1
    assert told.clean_after > 0.9
    assert (told.original_others, told.transferred, told.reattack, told.attacked_others) == (None, None, None, 0)
    assert (found.report.samples, found.report.counterparts) == (100, 60)


def test_results_depend_on_the_seed_alone(model: SliceableModel) -> None:
    samples = blobs(90, 0)
    config = ReadaptConfig(
        method="semantic", attack=AttackConfig(method="pgd", epsilons=(0.05, 0.2)), samples=40, training=SHORT
    )
    found = [
        readapt(model, as_batches(samples, size), own)
        for size, own in ((90, config), (7, config), (7, replace(config, seed=1)))
    ]
    states = [own.model.state_dict() for own in found]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert found[0].report.accuracies == found[1].report.accuracies
    assert not torch.equal(states[0]["4.bias"], states[2]["4.bias"])


def test_early_stopping_looks_at_a_part_that_does_not_train(model: SliceableModel) -> None:
    training = TrainingConfig(epochs=50, batch_size=16, learning_rate=0.05, patience=2)
    config = ReadaptConfig(method="full", attack=ATTACK, samples=50, training=training, validation_share=0.3)
    report = readapt(model, as_batches(blobs(120, 0)), config).report
    assert (report.samples, report.counterparts) == (35, 35)
    losses = [record.validation_loss for record in report.training.curve]
    assert report.training.best_epoch == 1 + losses.index(min(losses)) == len(losses) - 2 < 48
    told = readapt(model, as_batches(blobs(120, 0)), config, validation=as_batches(blobs(30, 3))).report
    assert (told.samples, told.counterparts) == (50, 50)
    with pytest.raises(DatasetError, match="1 drawn samples, 1 would be held out"):
        readapt(model, as_batches(blobs(120, 0)), replace(config, samples=1))


def test_it_goes_on_after_an_interruption(model: SliceableModel, tmp_path: Path) -> None:
    data = as_batches(blobs(90, 0))
    config = ReadaptConfig(method="full", attack=ATTACK, samples=40, training=replace(SHORT, epochs=4))
    whole = readapt(model, data, config)
    told: list[str] = []
    with pytest.raises(StoppedError):
        readapt(
            model,
            data,
            config,
            checkpoint=tmp_path / "state",
            on_progress=lambda stage, _, __: told.append(stage),
            should_stop=lambda: told.count("train") > 8,
        )
    again = readapt(model, data, config, checkpoint=tmp_path / "state")
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.model.state_dict().items())
    assert again.report.accuracies == whole.report.accuracies


def test_stages_come_in_order_and_do_not_come_back(model: SliceableModel) -> None:
    told: list[tuple[str, float]] = []
    config = ReadaptConfig(method="semantic+deeparc", attack=ATTACK, samples=40, training=replace(SHORT, patience=1))
    readapt(
        model,
        as_batches(blobs(90, 0)),
        config,
        on_progress=lambda stage, done, total: told.append((stage, done / total)),
    )
    stages = list(dict.fromkeys(stage for stage, _ in told))
    assert stages == ["attack", "score", "coverage", "train", "reattack", "evaluate"]
    for own in ("attack", "train", "reattack", "evaluate"):
        shares = [share for stage, share in told if stage == own]
        assert shares == sorted(shares)
        assert shares[0] == 0


def test_a_training_that_diverges_leaves_the_last_good_network(model: SliceableModel) -> None:
    data = as_batches(blobs(90, 0))
    broken = TrainingConfig(epochs=5, batch_size=16, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(DivergedError) as caught:
        readapt(model, data, ReadaptConfig(method="full", attack=ATTACK, samples=40, training=broken))
    assert caught.value.last_good == 0
    network = caught.value.network
    assert evaluate(network, data) == evaluate(model, data)


def test_the_callers_model_stays_as_it_was(model: SliceableModel) -> None:
    before = {name: value.clone() for name, value in model.graph_module.state_dict().items()}
    readapt(model, as_batches(blobs(90, 0)), ReadaptConfig(method="full", attack=ATTACK, samples=9, training=SHORT))
    assert all(torch.equal(value, before[name]) for name, value in model.graph_module.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.graph_module.parameters())


def test_a_checkpoint_holds_the_network_and_the_report(model: SliceableModel, tmp_path: Path) -> None:
    config = ReadaptConfig(method="semantic", attack=ATTACK, samples=30, training=SHORT)
    found = readapt(model, as_batches(blobs(90, 0)), config)
    found.save(tmp_path / "repaired.safetensors")
    inputs = blobs(9, 5).inputs
    torch.testing.assert_close(load_checkpoint(tmp_path / "repaired.safetensors")(inputs), found.model(inputs))
    kept = read_checkpoint_metadata(tmp_path / "repaired.safetensors")["extra"]["readapt"]
    assert kept == json.loads(json.dumps(found.report.to_dict()))
    assert ReadaptConfig.from_dict(kept["config"]).slicing == SlicingConfig(threshold=0.99)
    assert len(kept["training"]["curve"]) == 2


def test_all_samples_may_be_drawn(model: SliceableModel) -> None:
    """Nothing is left to judge by, and the report says so."""
    config = ReadaptConfig(method="full", attack=ATTACK, training=SHORT)
    told = readapt(model, as_batches(blobs(30, 0)), config).report.accuracies
    assert (told.clean_after, told.reattack, told.test_samples) == (None, None, 0)
    assert told.retrained is not None


@pytest.mark.parametrize(
    ("config", "given", "error", "words"),
    [
        ({}, {}, ConfigError, "neither an attack nor new samples"),
        ({"attack": ATTACK}, {"new": "blobs"}, ConfigError, "both an attack and new samples"),
        ({"attack": ATTACK, "slicing": SlicingConfig()}, {"slice_": "semantic"}, ConfigError, "A slice is given"),
        ({"attack": ATTACK}, {"slice_": "global"}, SliceMismatchError, "takes slices by .*'semantic'"),
        ({"attack": ATTACK, "method": "full"}, {"slice_": "semantic"}, SliceMismatchError, "takes slices by"),
        ({"attack": ATTACK}, {"slice_": "other"}, SliceMismatchError, "another model"),
        ({"attack": ATTACK}, {"valid_range": ValidRange(torch.zeros(3), torch.ones(3))}, ConfigError, "3 channels"),
        ({}, {"new": [(torch.zeros(2, 5), torch.zeros(2).long())]}, DatasetError, "takes samples of"),
        ({}, {"new": [(torch.zeros(2, 6), torch.tensor([0, 3]))]}, DatasetError, "go from 0 to 3"),
        ({}, {"new": [(torch.zeros(2, 6), torch.zeros(2, 3))]}, DatasetError, "regression"),
        ({"attack": ATTACK}, {"test": [(torch.zeros(2, 5), torch.zeros(2).long())]}, DatasetError, "takes samples"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    model: SliceableModel, config: dict[str, Any], given: dict[str, Any], error: type[Exception], words: str
) -> None:
    data = as_batches(blobs(60, 0))
    if given.get("new") == "blobs":
        given = {"new": data}
    if isinstance(name := given.get("slice_"), str):
        strategy, owner = ("semantic", trace(mlp(), data[0][0])) if name == "other" else (name, model)
        given = {"slice_": slice_model(owner, data, SlicingConfig(strategy=strategy))}
    told: list[str] = []
    with pytest.raises(error, match=words):
        readapt(
            model,
            data,
            ReadaptConfig(**config, training=SHORT),
            **given,
            on_progress=lambda stage, _, __: told.append(stage),
        )
    assert told == []


def test_shares_of_a_network_with_norms() -> None:
    model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
    masks = trainable_parameters(model, [])
    assert parameter_share(masks) == 1


def test_no_sample_is_in_two_lots(model: SliceableModel) -> None:
    """Trained on, held out, and judged by: together all there are, each once."""
    numbered = InMemory(torch.arange(40.0)[:, None].expand(40, 6).clone(), torch.arange(40) % 3)
    config = ReadaptConfig(method="full", samples=20, training=replace(SHORT, patience=1), validation_share=0.25)
    lots = gather(model, Given(numbered, numbered, None, None), config, None, Progress())
    held = torch.cat([inputs[:, 0] for inputs, _ in lots.validation])
    trained, judged = (lot.take(torch.arange(len(lot)))[:, 0] for lot in (lots.clean, lots.test))
    assert (len(trained), len(judged), len(lots.others)) == (15, 20, 20)
    assert sorted([*trained.tolist(), *held[:5].tolist(), *judged.tolist()]) == list(range(40))
    new = lots.counterparts.take(torch.arange(30))[:, 0]
    assert sorted([*new.tolist(), *held[5:].tolist()]) == list(range(40))
