import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from neusemslice.errors import UnsafeFileError, WeightsError
from neusemslice.weights import load_network, read_weights
from tests.neusemslice.bad_files import BAD_WEIGHTS, MARKER, UNSAFE_WEIGHTS

SPEC: dict[str, Any] = {
    "builder": "layers",
    "kwargs": {
        "layers": [
            {"type": "Conv2d", "kwargs": {"in_channels": 1, "out_channels": 2, "kernel_size": 3}},
            {"type": "BatchNorm2d", "kwargs": {"num_features": 2}},
            {"type": "Flatten"},
            {"type": "Linear", "kwargs": {"in_features": 8, "out_features": 3}},
        ]
    },
    "input_shape": [1, 4, 4],
}


def trained() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    network(torch.randn(8, 1, 4, 4))  # moves the running statistics
    return network.eval()


def save_torch(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save(tensors, path)


@pytest.mark.parametrize("save", [save_torch, save_file])
def test_both_forms_load_to_the_same_network(save: Callable[[dict[str, Tensor], Path], None], tmp_path: Path) -> None:
    network = trained()
    save(network.state_dict(), tmp_path / "any-name.bin")
    loaded = load_network(SPEC, tmp_path / "any-name.bin")
    images = torch.randn(5, 1, 4, 4)
    assert torch.equal(loaded(images), network(images))
    assert not loaded.training
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in loaded.parameters())
    assert list(loaded.state_dict()) == list(network.state_dict())


def test_the_network_holds_copies(tmp_path: Path) -> None:
    network = trained()
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    loaded = load_network(SPEC, path)
    path.write_bytes(b"")
    assert torch.equal(loaded(torch.ones(1, 1, 4, 4)), network(torch.ones(1, 1, 4, 4)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in trained().state_dict().items()
    }
    save_file(state, tmp_path / "weights")
    loaded = load_network(SPEC, tmp_path / "weights").state_dict()
    assert all(torch.equal(loaded[name], value.to(loaded[name].dtype)) for name, value in state.items())
    assert {value.dtype for value in loaded.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_wrapped_and_parallel_state_dicts_are_unwrapped(wrapper: str, tmp_path: Path) -> None:
    state = trained().state_dict()
    wrapped = {"epoch": 3, wrapper: {f"module.{name}": tensor for name, tensor in state.items()}, "best": 0.5}
    torch.save(wrapped, tmp_path / "weights")
    assert read_weights(tmp_path / "weights").keys() == state.keys()


def test_a_module_prefix_that_some_keys_lack_stays(tmp_path: Path) -> None:
    save_file({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "weights")
    assert read_weights(tmp_path / "weights").keys() == {"module.a", "b"}


def test_a_missing_batch_counter_is_no_fault(tmp_path: Path) -> None:
    state = {name: value for name, value in trained().state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "weights")
    assert load_network(SPEC, tmp_path / "weights").get_buffer("1.num_batches_tracked").item() == 0


def test_tensors_that_lie_transposed_in_memory_are_read_right(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(3, 2).T
    torch.save({"1.weight": weight, "1.bias": torch.zeros(2)}, tmp_path / "weights")
    loaded = load_network({"builder": "mlp", "kwargs": {"sizes": [3, 2]}}, tmp_path / "weights")
    assert torch.equal(loaded.get_parameter("1.weight"), weight)
    assert loaded.get_parameter("1.weight").is_contiguous()


def test_everything_that_does_not_fit_is_in_one_error(tmp_path: Path) -> None:
    state = trained().state_dict()
    state["extra"] = torch.ones(7)
    state["3.weight"] = torch.ones(3, 9)
    state["0.bias"] = torch.ones(2, dtype=torch.int64)
    del state["0.weight"]
    save_file(state, tmp_path / "weights")
    with pytest.raises(WeightsError) as caught:
        load_network(SPEC, tmp_path / "weights")
    assert "1 missing: 0.weight [2, 1, 3, 3]" in caught.value.message
    assert "1 unexpected: extra [7]" in caught.value.message
    assert "1 of another shape: 3.weight [3, 9] instead of [3, 8]" in caught.value.message
    assert "1 of another type: 0.bias torch.int64 instead of torch.float32" in caught.value.message


def test_long_lists_show_the_first_ten(tmp_path: Path) -> None:
    save_file({f"t{number:02}": torch.ones(1) for number in range(30)}, tmp_path / "weights")
    with pytest.raises(WeightsError, match="30 unexpected: t00") as caught:
        load_network({"builder": "mlp", "kwargs": {"sizes": [3, 2]}}, tmp_path / "weights")
    assert "t09" in caught.value.message
    assert "t10" not in caught.value.message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_numbers_that_are_not_finite_in_float32_are_named(value: float, tmp_path: Path) -> None:
    state = trained().state_dict()
    state["3.weight"] = torch.full((3, 8), value, dtype=torch.float64)
    save_file(state, tmp_path / "weights")
    with pytest.raises(WeightsError, match=r"3\.weight holds NaN or infinity"):
        load_network(SPEC, tmp_path / "weights")


@pytest.mark.parametrize("name", sorted(BAD_WEIGHTS))
def test_bad_files_are_refused_with_a_remedy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    BAD_WEIGHTS[name](tmp_path / "weights")
    with pytest.raises(WeightsError) as caught:
        read_weights(tmp_path / "weights")
    assert isinstance(caught.value, UnsafeFileError) == (name in UNSAFE_WEIGHTS)
    assert caught.value.hint
    assert len(str(caught.value)) < 400
    assert not Path(MARKER).exists()


def test_remedies_are_exact(tmp_path: Path) -> None:
    BAD_WEIGHTS["pickled_module"](tmp_path / "weights")
    with pytest.raises(UnsafeFileError, match=r"asks for 'torch\.nn\.modules\.linear\.Linear'") as caught:
        read_weights(tmp_path / "weights")
    assert 'torch.save(model.state_dict(), "weights.pt")' in caught.value.hint
    BAD_WEIGHTS["onnx"](tmp_path / "weights")
    with pytest.raises(WeightsError, match="ONNX") as other:
        read_weights(tmp_path / "weights")
    assert "safetensors.torch.save_file(model.state_dict()" in other.value.hint


@pytest.mark.parametrize("save", [save_torch, save_file])
def test_any_damage_ends_in_a_typed_error_or_in_tensors(
    save: Callable[[dict[str, Tensor], Path], None], tmp_path: Path
) -> None:
    save({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (tmp_path / "damaged").write_bytes(damaged[: chance.choice([len(damaged), chance.randrange(len(damaged))])])
        try:
            read_weights(tmp_path / "damaged")
        except WeightsError:
            refused += 1
    assert refused > 100


def test_a_missing_file_is_an_ordinary_file_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "nothing")


PLUGIN = """
import torch
from torch import nn

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("scale", torch.arange(2.0), persistent=False)

    def forward(self, x):
        return self.fc(x) * self.scale
"""


def test_buffers_outside_the_state_dict_get_their_birth_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scaled_nets.py").write_text(PLUGIN)
    info = tmp_path / "scaled_nets-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scaled-nets\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[neusemslice.architectures]\nscaled = scaled_nets:Scaled\n")
    monkeypatch.syspath_prepend(tmp_path)
    save_file({"fc.weight": torch.eye(2), "fc.bias": torch.ones(2)}, tmp_path / "weights")
    network = load_network({"builder": "scaled"}, tmp_path / "weights")
    assert torch.equal(network(torch.tensor([[3.0, 5.0]])), torch.tensor([[0.0, 6.0]]))
    assert list(network.state_dict()) == ["fc.weight", "fc.bias"]
