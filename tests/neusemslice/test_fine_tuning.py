"""Fine-tuning what restructuring and pruning made."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from neusemslice import (
    PruningConfig,
    SlicingConfig,
    TrainingConfig,
    evaluate,
    fine_tune,
    load_checkpoint,
    prune_weights,
    restructure,
    slice_model,
    trace,
)
from neusemslice.errors import ConfigError, DivergedError
from neusemslice.tracing import SliceableModel
from tests.neusemslice.networks import randomised

TRAINING = TrainingConfig(epochs=15, batch_size=16, learning_rate=0.01)


@pytest.fixture(scope="module")
def model() -> SliceableModel:
    network = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3))
    return trace(randomised(network), torch.zeros(1, 6))


def labelled(model: SliceableModel, seed: int, samples: int = 200) -> list[tuple[Tensor, Tensor]]:
    inputs = torch.randn(samples, 6, generator=torch.Generator().manual_seed(seed))
    return list(zip(inputs.split(32), model(inputs).argmax(1).split(32), strict=True))


@pytest.fixture(scope="module")
def smaller(model):
    return restructure(model, slice_model(model, labelled(model, 1), SlicingConfig(target_compression=0.7)))


@pytest.mark.parametrize("with_teacher", [False, True])
def test_a_restructured_network_gets_its_accuracy_back(model, smaller, with_teacher: bool, tmp_path: Path) -> None:
    test = labelled(model, 2)
    before = {name: value.clone() for name, value in smaller.model.state_dict().items()}
    tuned = fine_tune(smaller, labelled(model, 1), TRAINING, teacher=model if with_teacher else None)
    assert evaluate(tuned.model, test).accuracy > evaluate(smaller.model, test).accuracy + 0.05
    assert all(torch.equal(smaller.model.state_dict()[name], value) for name, value in before.items())
    assert len(tuned.training.curve) == 15
    tuned.save(tmp_path / "tuned.safetensors")
    inputs = torch.randn(4, 6)
    assert torch.equal(load_checkpoint(tmp_path / "tuned.safetensors")(inputs), tuned.model(inputs))


def test_zeros_of_a_pruned_network_stay_zero(model) -> None:
    pruned = prune_weights(model, PruningConfig(sparsity=0.6))
    tuned = fine_tune(pruned, labelled(model, 1), TrainingConfig(epochs=2, weight_decay=0.1))
    for name in ("0.weight", "2.weight", "4.weight"):
        before, after = pruned.model.get_parameter(name), tuned.model.get_parameter(name)
        assert torch.equal(before == 0, after == 0)
        assert not torch.equal(before, after)
    assert not torch.equal(pruned.model.get_parameter("0.bias"), tuned.model.get_parameter("0.bias"))


def test_goes_on_from_a_checkpoint(model, smaller, tmp_path: Path) -> None:
    data, path = labelled(model, 1), tmp_path / "training.safetensors"
    whole = fine_tune(smaller, data, TrainingConfig(epochs=2), checkpoint=path)
    again = fine_tune(smaller, data, TrainingConfig(epochs=2), checkpoint=path)
    states = zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in states)


def test_what_diverges_leaves_the_last_good_network(model, smaller) -> None:
    training = TrainingConfig(epochs=2, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(DivergedError) as caught:
        fine_tune(smaller, labelled(model, 1), training)
    inputs = torch.randn(4, 6)
    assert torch.equal(caught.value.network(inputs), smaller.model(inputs))


def test_a_teacher_of_other_categories_is_refused(model, smaller) -> None:
    with pytest.raises(ConfigError, match="3 categories") as caught:
        fine_tune(smaller, labelled(model, 1), TRAINING, teacher=nn.Linear(6, 2))
    assert caught.value.field == "teacher"
