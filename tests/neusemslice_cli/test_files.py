"""The library on files, from the command line."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from neusemslice import load_checkpoint
from neusemslice.errors import ConfigError, DatasetError
from neusemslice_cli.main import app

SIZES = [16, 12, 8, 2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network, its architecture, and data; the working folder."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(SIZES):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    torch.manual_seed(0)
    save_file(nn.Sequential(*layers[:-1]).state_dict(), tmp_path / "net.safetensors")
    spec = {"builder": "mlp", "kwargs": {"sizes": SIZES}, "input_shape": [1, 4, 4]}
    (tmp_path / "net.json").write_text(json.dumps(spec))
    images = np.random.default_rng(0).integers(0, 255, (40, 4, 4), dtype=np.uint8)
    labels = np.arange(40) % 2
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_slice_restructure_evaluate(folder: Path) -> None:
    model = ("net.json", "--weights", "net.safetensors")
    data = ("--data", "data.npz", "--preprocess", '{"scale": 0.0039}')
    assert "neurons are critical" in run("slice", *model, *data, "--threshold", "0.8")
    assert "compression_rate" in run("restructure", *model, "--slice", "slice.safetensors", "--cut", "0.6")
    small = load_checkpoint(folder / "restructured.safetensors")
    assert sum(p.numel() for p in small.parameters()) < 16 * 12 + 12 + 12 * 8 + 8 + 8 * 2 + 2
    found = json.loads(run("evaluate", "restructured.safetensors", *data))
    assert found["samples"] == 10
    assert 0 <= found["accuracy"] <= 1


def test_reconstructing_from_data(folder: Path) -> None:
    model = ("net.json", "--weights", "net.safetensors")
    data = ("--data", "data.npz")
    run("slice", *model, *data, "--strategy", "random", "--fraction", "0.5")
    cut = ("restructure", *model, "--slice", "slice.safetensors")
    assert "reconstruction: null" in run(*cut)
    assert '"level": "least_squares", "samples": 40' in run(*cut, *data)
    assert '"level": "bias"' in run(*cut, *data, "--reconstruct", "bias")
    assert "reconstruction: null" in run(*cut, *data, "--reconstruct", "none")
    with pytest.raises(ConfigError, match="there are none"):
        run(*cut, "--reconstruct", "norms")


def test_slicing_to_a_target(folder: Path) -> None:
    arguments = ("net.json", "--weights", "net.safetensors", "--data", "data.npz", "--metric", "avg")
    run("slice", *arguments, "--strategy", "global", "--target-compression", "0.57")
    compression = run("restructure", *arguments[:3], "--slice", "slice.safetensors").split("compression_rate: ")[1]
    assert float(compression.split()[0]) == pytest.approx(1 - 140 / 326)
    assert "cut at" in run("slice", *arguments, "--max-accuracy-drop", "0.5", "--increment", "2")


def test_slicing_to_a_budget(folder: Path) -> None:
    arguments = ("net.json", "--weights", "net.safetensors", "--data", "data.npz", "--metric", "avg")
    whole = (folder / "net.safetensors").stat().st_size
    run("slice", *arguments, "--strategy", "global", "--target-size-bytes", str(whole + 3000))
    run("restructure", *arguments[:3], "--slice", "slice.safetensors")
    assert (folder / "restructured.safetensors").stat().st_size <= whole + 3000
    assert "cut at" in run("slice", *arguments, "--target-latency-ms", "60000", "--latency-batch-size", "2")


def test_restructuring_with_training_and_pruning(folder: Path) -> None:
    model = ("net.json", "--weights", "net.safetensors")
    run("slice", *model, "--data", "data.npz", "--threshold", "0.8")
    arguments = ("restructure", *model, "--slice", "slice.safetensors")
    printed = run(
        *arguments, "--data", "data.npz", "--fine-tune-epochs", "1", "--prune", "erk", "--prune-sparsity", "0.5",
        "--prune-fine-tune-epochs", "1", "--distill",
    )  # fmt: skip
    assert "iteration 6: " in printed
    assert printed.count("<- result") == 1
    weights = load_file(folder / "restructured.safetensors")
    numbers = torch.cat([value.flatten() for name, value in weights.items() if name.endswith("weight")])
    assert float((numbers == 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert "accuracy" in run(*arguments, "--data", "data.npz", "--prune", "lamp", "--prune-max-accuracy-drop", "0.1")
    assert "accuracy" not in run(*arguments, "--prune", "global", "--prune-iterations", "2")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (("--fine-tune-epochs", "1"), "data"),
        (("--prune", "lamp", "--prune-max-accuracy-drop", "0.1"), "data"),
        (("--prune", "lamp"), "iterations"),
        (("--prune", "lamp", "--prune-iterations", "2", "--prune-sparsity", "0.5"), "sparsity"),
        (("--prune-iterations", "2"), "prune"),
        (("--distill",), "distill"),
    ],
)
def test_training_and_pruning_are_checked_first(folder: Path, options: tuple[str, ...], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run("restructure", "net.json", "--weights", "net.safetensors", "--slice", "missing", *options)
    assert caught.value.field == field


def test_deeparc_needs_data_to_sew(folder: Path) -> None:
    model = ("net.json", "--weights", "net.safetensors")
    run("slice", *model, "--data", "data.npz", "--strategy", "deeparc", "--threshold", "0.05")
    assert '"kind": "linear"' in run("restructure", *model, "--slice", "slice.safetensors", "--data", "data.npz")
    with pytest.raises(ConfigError, match="there is no data"):
        run("restructure", *model, "--slice", "slice.safetensors")


def test_comparing_models_of_one_architecture(folder: Path) -> None:
    weights = load_file("net.safetensors")
    save_file({name: value + 0.1 for name, value in weights.items()}, "other.safetensors")
    models = ("net.json", "--weights", "net.safetensors", "--weights", "other.safetensors")
    options = ("--metrics", "avg,taylor", "--compressions", "0.2, 0.5", "--strategies", "semantic,random,deeparc")
    options += ("--deeparc-thresholds", "1.0", "--no-pilot")
    printed = run("compare", *models, "--data", "data.npz", "--output", "found", *options)
    values = json.loads((folder / "found" / "comparison.json").read_text())
    assert [model["name"] for model in values["models"]] == ["net", "other"]
    assert [len(curve["points"]) for curve in values["curves"]] == [2, 2, 2, 1] * 2
    assert values["left_out"] == ["deeparc"]
    assert len(values["tests"]) == 2
    assert f"{values['areas'][0]['mean']:.2%}" in printed
    assert "Evaluated on the test split." in printed
    assert "report.html" in printed
    assert {path.name for path in (folder / "found").iterdir()} == {
        "comparison.json",
        "comparison.csv",
        "report.html",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("net.json", "small", "--weights", "net.safetensors"), "2 models and --weights"),
        (("net.json", "--weights", "a", "--weights", "a"), "given twice"),
        (("net.json", "--compressions", "half"), "--compressions is 'half'"),
        (("net.json", "--thresholds", "0.9"), "no fractions"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run("compare", *arguments, "--data", "data.npz", "--output", "found")


def test_an_architecture_needs_weights(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--weights is missing"):
        run("evaluate", "net.json", "--data", "data.npz")


def test_bad_data_is_an_error_with_a_remedy(folder: Path) -> None:
    (folder / "bad.npz").write_bytes(b"no data")
    with pytest.raises(DatasetError, match="no known format"):
        run("evaluate", "net.json", "--weights", "net.safetensors", "--data", "bad.npz")
