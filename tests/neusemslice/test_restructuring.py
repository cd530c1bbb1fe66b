"""Physical removal: what the masked network computes, with smaller tensors."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from neusemslice import SlicingConfig, load_checkpoint, restructure, slice_model, surgery, trace
from neusemslice.errors import ConfigError, RestructureError, SliceMismatchError
from neusemslice.masking import mask_neurons
from neusemslice.surgery import keep_outputs
from tests.neusemslice.networks import functional, mlp, randomised, vgg_like
from tests.neusemslice.test_slicing import batches


def conv_1d() -> nn.Module:
    return randomised(
        nn.Sequential(
            nn.Conv1d(2, 6, 3), nn.ReLU(), nn.BatchNorm1d(6), nn.MaxPool1d(2), nn.Conv1d(6, 4, 2), nn.Tanh(),
            nn.Flatten(), nn.Linear(16, 3),
        )
    )  # fmt: skip


def sigmoid_and_slopes() -> nn.Module:
    """Activations that move zero, and one with a slope for each channel."""
    return randomised(
        nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.PReLU(6), nn.Conv2d(6, 5, 3), nn.Sigmoid(), nn.AvgPool2d(2, padding=1),
            nn.Flatten(), nn.Linear(125, 8, bias=False), nn.GELU(), nn.Linear(8, 3), nn.LogSoftmax(1),
        )
    )  # fmt: skip


def pooled_before_norm() -> nn.Module:
    """The read place lies behind the pool."""
    return randomised(
        nn.Sequential(
            nn.Conv2d(2, 6, 3, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 4, 3),
            nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(36, 3),
        )
    )  # fmt: skip


def flattened_in_two_steps() -> nn.Module:
    """The first flatten keeps the channels apart, the second does not."""
    return randomised(
        nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(2), nn.MaxPool1d(5), nn.Flatten(), nn.Linear(120, 5), nn.ReLU(),
            nn.Linear(5, 3),
        )
    )  # fmt: skip


NETWORKS = {
    "flattened in two steps": (flattened_in_two_steps, (2, 12, 12)),
    "mlp": (mlp, (6,)),
    "vgg": (vgg_like, (2, 12, 12)),
    "functional": (functional, (2, 12, 12)),
    "conv 1d": (conv_1d, (2, 12)),
    "sigmoid and slopes": (sigmoid_and_slopes, (2, 12, 12)),
    "pooled before norm": (pooled_before_norm, (2, 12, 12)),
}


def random_keep(model, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keep = {layer.name: torch.rand(layer.neurons, generator=generator) < 0.6 for layer in model.sliceable_layers}
    for mask in keep.values():
        mask[0] = True
    return keep


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_restructured_computes_what_masked_computes(name: str, seed: int) -> None:
    """In float64, where only rounding could differ; and the tensors really are smaller."""
    make, shape = NETWORKS[name]
    model = trace(make().double(), torch.zeros(1, *shape, dtype=torch.float64))
    keep = random_keep(model, seed)
    result = restructure(model, keep)
    inputs = torch.randn(16, *shape, dtype=torch.float64)
    expected = mask_neurons(model, keep)(inputs)
    torch.testing.assert_close(result.model(inputs), expected, rtol=0, atol=1e-12)
    for layer in model.sliceable_layers:
        assert len(result.model.get_submodule(layer.name).weight) == int(keep[layer.name].sum())
    assert result.report.parameters_after < result.report.parameters_before
    assert result.report.max_relative_difference < 1e-12


def test_the_mask_is_where_zero_is_removal() -> None:
    """By hand: conv -> norm -> relu -> conv. Zero before the norm would come out as beta - gamma mu / sigma."""
    network = randomised(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3)))
    model = trace(network, torch.zeros(1, 1, 1, 1))
    inputs = torch.randn(5, 1, 1, 1)
    hidden = network[:4](inputs) * torch.tensor([0.0, 1.0])
    masked = mask_neurons(model, {"0": torch.tensor([False, True])})
    torch.testing.assert_close(masked(inputs), network[4](hidden))


def test_keeping_everything_changes_no_bit() -> None:
    model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
    keep = {layer.name: torch.ones(layer.neurons, dtype=torch.bool) for layer in model.sliceable_layers}
    result = restructure(model, keep)
    inputs = torch.randn(4, 2, 12, 12)
    assert torch.equal(result.model(inputs), model(inputs))
    assert result.report.compression_rate == 0


def test_layers_that_are_not_named_stay_whole() -> None:
    model = trace(mlp(), torch.zeros(1, 6))
    result = restructure(model, {"2": torch.tensor([True, False] * 3 + [True])})
    assert (result.model.get_submodule("0").out_features, result.model.get_submodule("2").out_features) == (9, 4)


def test_the_report_counts_by_hand() -> None:
    """6-9-7-3 with 4 and 2 left is 6-4-2-3: 28 + 10 + 9 of 63 + 70 + 24 parameters; a multiply-add counts two."""
    model = trace(mlp(), torch.zeros(1, 6))
    keep = {"0": torch.arange(9) < 4, "2": torch.arange(7) < 2}
    report = restructure(model, keep).report
    assert (report.parameters_before, report.parameters_after) == (157, 47)
    assert report.compression_rate == pytest.approx(1 - 47 / 157)
    assert report.flops_before == 2 * (6 * 9 + 9 * 7 + 7 * 3)
    assert report.flops_after == 2 * (6 * 4 + 4 * 2 + 2 * 3)
    assert report.to_dict()["layers"] == {"0": {"kept": 4, "neurons": 9}, "2": {"kept": 2, "neurons": 7}}


def test_neither_the_network_nor_the_model_changes() -> None:
    network = vgg_like().train()
    model = trace(network, torch.zeros(1, 2, 12, 12))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    result = restructure(model, random_keep(model))
    for parameter in result.model.parameters():
        parameter.data.zero_()
    for state in (network.state_dict(), model.graph_module.state_dict()):
        assert all(torch.equal(before[name], state[name]) for name in before)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_result_can_be_trained() -> None:
    model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
    smaller = restructure(model, random_keep(model)).model
    optimizer = torch.optim.SGD(smaller.train().parameters(), lr=0.1)
    inputs, labels = torch.randn(32, 2, 12, 12), torch.arange(32) % 3
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(smaller(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_saved_checkpoint_computes_the_same_bits_and_can_be_sliced_again(tmp_path: Path) -> None:
    data = batches((2, 12, 12))
    model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
    first = restructure(model, slice_model(model, data, SlicingConfig(threshold=0.7)))
    first.save(tmp_path / "small.safetensors")
    loaded = load_checkpoint(tmp_path / "small.safetensors")
    inputs = torch.randn(4, 2, 12, 12)
    assert torch.equal(loaded(inputs), first.model(inputs))
    again = trace(loaded, inputs)
    second = restructure(again, slice_model(again, data, SlicingConfig(strategy="random", fraction=0.5)))
    assert second.report.parameters_after < first.report.parameters_after


def test_a_slice_of_another_model_is_refused() -> None:
    data = batches((6,))
    one, other = trace(mlp(), torch.zeros(1, 6)), trace(randomised(mlp(), seed=5), torch.zeros(1, 6))
    with pytest.raises(SliceMismatchError, match="another model"):
        restructure(other, slice_model(one, data))


def test_a_deeparc_slice_takes_whole_layers_out() -> None:
    """The middle layer repeats the first one's values: it goes, a sewing layer of its size stands in for it."""
    network = randomised(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))
    network[2].weight.data, network[2].bias.data = torch.eye(8), torch.zeros(8)
    model, data = trace(network, torch.zeros(1, 6)), batches((6,))
    slice_ = slice_model(model, data, SlicingConfig(strategy="deeparc", threshold=0.99))
    result = restructure(model, slice_, calibration=data)
    assert {name: count.kept for name, count in result.report.layers.items()} == {"0": 8, "2": 0}
    assert [seam.layers for seam in result.report.seams] == [("2",)]
    assert result.report.max_relative_difference is None
    inputs = data[0][0]
    torch.testing.assert_close(result.model(inputs), network(inputs), rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="no data"):
        restructure(model, slice_)


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"7": torch.ones(9, dtype=torch.bool)}, "no such layer"),
        ({"0": torch.ones(8, dtype=torch.bool)}, "9 neurons"),
        ({"0": torch.zeros(9, dtype=torch.bool)}, "keeps no neuron"),
    ],
)
def test_bad_keep_masks_are_refused(keep: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(SliceMismatchError, match=words):
        restructure(trace(mlp(), torch.zeros(1, 6)), keep)


def test_a_wrong_cut_does_not_pass_its_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Surgery that takes the wrong neurons gives a network that runs; only the proof notices."""

    def keep_the_wrong_ones(layer: nn.Module, kept: torch.Tensor) -> nn.Module:
        return keep_outputs(layer, layer.weight.shape[0] - 1 - kept)

    monkeypatch.setattr(surgery, "keep_outputs", keep_the_wrong_ones)
    with pytest.raises(RestructureError, match="differs from the masked one"):
        restructure(trace(mlp(), torch.zeros(1, 6)), {"0": torch.arange(9) < 4})


def test_networks_that_are_no_longer_used_are_freed_at_once() -> None:
    """Not at the next garbage collection: a sweep makes hundreds."""
    model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
    keep = random_keep(model)
    gc.disable()
    try:
        made = [restructure(model, keep).model, mask_neurons(model, keep), trace(vgg_like(), torch.zeros(1, 2, 12, 12))]
        made[2] = made[2].graph_module
        alive = [weakref.ref(network) for network in made]
        made[0](torch.zeros(1, 2, 12, 12))
        del made
        assert [network() for network in alive] == [None, None, None]
    finally:
        gc.enable()


def test_masked_and_restructured_networks_share_no_tensor_with_the_model() -> None:
    model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
    own = {tensor.data_ptr() for tensor in model.graph_module.state_dict().values()}
    keep = random_keep(model)
    for network in (restructure(model, keep).model, mask_neurons(model, keep), restructure(model, {}).model):
        assert own.isdisjoint(tensor.data_ptr() for tensor in network.state_dict().values())
