import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import fx, nn

from neusemslice.checkpoint import load_checkpoint, read_checkpoint_metadata, save_checkpoint
from neusemslice.errors import ArchitectureError, CheckpointError
from neusemslice.weights import load_network
from tests.neusemslice.bad_files import BAD_WEIGHTS


def canonical() -> fx.GraphModule:
    torch.manual_seed(0)
    body = nn.Sequential()
    body.add_module("features", nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()))
    body.add_module("flatten", nn.Flatten())
    body.add_module("classifier", nn.Sequential(nn.Dropout(), nn.Linear(16, 5)))
    body(torch.randn(8, 1, 4, 4))
    return fx.symbolic_trace(body.eval())


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    network = canonical()
    path = tmp_path / "small.safetensors"
    save_checkpoint(network, (1, 4, 4), path, {"kept": 0.5})
    assert [file.name for file in tmp_path.iterdir()] == ["small.safetensors"]
    loaded = load_checkpoint(path)
    images = torch.randn(3, 1, 4, 4)
    assert torch.equal(loaded(images), network(images))
    assert not loaded.training
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in network.state_dict().items())
    metadata = read_checkpoint_metadata(path)
    assert metadata["format"] == 1
    assert metadata["extra"] == {"kept": 0.5}
    assert metadata["architecture"]["input_shape"] == [1, 4, 4]
    again = load_network(metadata["architecture"], path)
    assert torch.equal(again(images), network(images))


def test_a_loaded_checkpoint_trains_and_can_be_saved_again(tmp_path: Path) -> None:
    save_checkpoint(canonical(), (1, 4, 4), tmp_path / "first")
    network = load_checkpoint(tmp_path / "first")
    assert isinstance(network, fx.GraphModule)
    network.train()(torch.randn(4, 1, 4, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    save_checkpoint(network, (1, 4, 4), tmp_path / "second")
    architectures = [read_checkpoint_metadata(tmp_path / name)["architecture"] for name in ("first", "second")]
    assert architectures[0] == architectures[1]


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    body = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    body[2].weight = body[0].weight
    network = fx.symbolic_trace(body)
    save_checkpoint(network, (3,), tmp_path / "tied")
    vectors = torch.randn(4, 3)
    assert torch.equal(load_checkpoint(tmp_path / "tied")(vectors), network(vectors))


def test_a_failed_save_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "network"
    path.write_bytes(b"earlier")
    network = canonical()
    with pytest.raises(CheckpointError, match="extra is not JSON"):
        save_checkpoint(network, (1, 4, 4), path, {"when": object()})
    with pytest.raises(CheckpointError, match="extra is not JSON"):
        save_checkpoint(network, (1, 4, 4), path, {"kept": float("nan")})
    network.get_submodule("classifier.1").weight.data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"classifier\.1\.weight holds NaN"):
        save_checkpoint(network, (1, 4, 4), path)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_networks_that_could_not_be_read_back_are_refused(tmp_path: Path) -> None:
    network = canonical()
    linear = network.get_submodule("classifier.1")
    linear.weight = nn.Parameter(torch.ones(4, 16))
    with pytest.raises(CheckpointError, match=r"classifier\.1\.weight is \[4, 16\], but its layer says \[5, 16\]"):
        save_checkpoint(network, (1, 4, 4), tmp_path / "x")
    network = canonical()
    network.add_module("unused", nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match="unused"):
        save_checkpoint(network, (1, 4, 4), tmp_path / "x")
    with pytest.raises(ArchitectureError, match="input_shape"):
        save_checkpoint(canonical(), (0,), tmp_path / "x")


@pytest.mark.parametrize("name", sorted(BAD_WEIGHTS))
def test_bad_files_are_no_checkpoints(name: str, tmp_path: Path) -> None:
    BAD_WEIGHTS[name](tmp_path / "file")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "file")


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        (None, "no architecture"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "metadata is 3"),
        (json.dumps({"format": 2, "architecture": {}, "extra": {}}), "knows 1"),
        (json.dumps({"format": 1, "architecture": {}}), "metadata is"),
        (json.dumps({"format": 1, "architecture": [], "extra": {}}), "damaged"),
        (
            json.dumps({"format": 1, "architecture": {"builder": "mlp", "kwargs": {"sizes": [3, 2]}}, "extra": {}}),
            "missing",
        ),
    ],
)
def test_false_metadata_is_refused(metadata: str | None, says: str, tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "file", None if metadata is None else {"neusemslice": metadata})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "file")
    assert says in str(caught.value)


def test_metadata_is_read_without_the_tensors(tmp_path: Path) -> None:
    spec: dict[str, Any] = {"builder": "mlp", "kwargs": {"sizes": [3, 2]}}
    content = {"format": 1, "architecture": spec, "extra": {}}
    save_file({"weight": torch.full((2,), float("nan"))}, tmp_path / "file", {"neusemslice": json.dumps(content)})
    assert read_checkpoint_metadata(tmp_path / "file") == content
