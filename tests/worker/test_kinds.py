"""What the kinds of jobs do, on files, without a supervisor."""

import json
import os
import zlib
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from neusemslice import ModelSlice, SlicingConfig, load_checkpoint, slice_model, trace
from neusemslice.checkpoint import save_checkpoint
from neusemslice.data import import_dataset
from neusemslice.errors import CheckpointError, ConfigError, DatasetError, DivergedError, TargetError
from neusemslice.pruning import iterating
from neusemslice.restructuring import parameters_after
from tests.neusemslice.graphs import Residual
from worker.kinds import carry_out
from worker.order import Limits, Order

IDS = {"model_id": "mdl_" + "0" * 26, "dataset_id": "ds_" + "0" * 26}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An attempt's folder with a model, a dataset with two splits, and a pipe's two ends."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 2))
    save_checkpoint(trace(network, torch.zeros(1, 8)).graph_module, (8,), tmp_path / "model")
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 2
    inputs = generator.normal(size=(120, 8)).astype(np.float32) + labels[:, None]
    np.savez(tmp_path / "a.npz", x_train=inputs[:80], y_train=labels[:80], x_test=inputs[80:], y_test=labels[80:])
    import_dataset(tmp_path / "a.npz", tmp_path / "dataset")
    for folder in ("outputs", "checkpoints"):
        (tmp_path / folder).mkdir()
    return tmp_path


def work(root: Path, spec: dict[str, Any], files: tuple[str, ...] = ("model", "dataset"), **values: Any) -> Any:
    """The outcome, and under `fractions` the progress that was reported."""
    limits = Limits(memory_bytes=2**33, file_bytes=2**33, threads=1)
    order = Order(spec=spec, files={Path(name).stem: name for name in files}, values=values, limits=limits)
    reading, writing = os.pipe()
    threads = torch.get_num_threads()
    try:
        outcome = carry_out(order, root, writing, Event())
        os.close(writing)
        with os.fdopen(reading) as pipe:
            outcome["fractions"] = [json.loads(line).get("fraction") for line in pipe]
    finally:
        torch.set_num_threads(threads)
    return outcome


def test_a_comparison_leaves_three_files_and_names_the_winners(root: Path) -> None:
    spec = {"kind": "compare", **IDS, "metrics": ["avg", "taylor"], "compressions": [0.3, 0.6], "batch_size": 64}
    outcome = work(root, spec, model_name="<b>mine</b>")
    result = outcome["result"]
    assert [file["name"] for file in outcome["outputs"]] == ["comparison.json", "comparison.csv", "report.html"]
    values = json.loads((root / "outputs" / "comparison.json").read_text())
    assert values["models"][0]["name"] == "<b>mine</b>"
    assert "<b>mine" not in (root / "outputs" / "report.html").read_text()
    assert (result["evaluated_on"], result["accuracy_before"]) == ("test", values["models"][0]["accuracy"])
    assert set(result["winners"]) == {"avg", "taylor"}
    assert {(area["strategy"], area["metric"]) for area in result["areas"]} == {
        *((name, metric) for name in ("semantic", "categorywise", "global") for metric in ("avg", "taylor")),
        ("random", None),
    }
    assert outcome["fractions"] == sorted(outcome["fractions"])
    assert outcome["fractions"][-1] == 1


def test_a_slice_can_be_made_to_a_compression(root: Path) -> None:
    slicing = {"strategy": "global", "metric": "avg", "target_compression": 0.53}
    result = work(root, {"kind": "slice", **IDS, "slicing": slicing, "sweep": [0.9]})["result"]
    found = ModelSlice.load(root / "outputs" / "slice.safetensors")
    report = json.loads((root / "outputs" / "report.json").read_text())
    assert report["config"]["resolved_cut"] == found.config.cut == result["at_cut"]["cut"]
    assert result["at_cut"]["compression_rate"] == pytest.approx(1 - 115 / 245)
    assert len(result["sweep"]) == 1


SLICINGS = {
    "plain": ({"metric": "avg", "threshold": 0.9}, {"metric": "avg", "threshold": 0.6, "increment": 2}),
    "another strategy": ({"strategy": "categorywise"}, {"threshold": 0.8}),
    "compression": ({"metric": "avg"}, {"strategy": "categorywise", "metric": "avg", "target_compression": 0.465}),
    "accuracy": (
        {"metric": "avg", "max_accuracy_drop": 0.4},
        {"metric": "avg", "max_accuracy_drop": 0.1},
    ),
    "random": ({"strategy": "random", "fraction": 0.3}, {"strategy": "random", "fraction": 0.7}),
    "deeparc": ({"strategy": "deeparc"}, {"strategy": "deeparc", "threshold": 0.2}),
}


@pytest.mark.parametrize(("first", "second"), SLICINGS.values(), ids=SLICINGS)
def test_a_stored_analysis_gives_the_same_as_a_new_one(
    root: Path, first: dict[str, Any], second: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = work(root, {"kind": "slice", **IDS, "seed": 3, "slicing": first})
    assert made["result"]["analysis"] == "computed"
    assert made["outputs"][-1] == {"name": "analysis.safetensors", "role": "analysis"}
    (root / "outputs" / "analysis.safetensors").rename(root / "analysis")
    forget(root)
    asked = {"kind": "restructure", **IDS, "seed": 3, "slicing": second}
    anew = work(root, asked)
    anew_bytes = {path.name: path.read_bytes() for path in (root / "outputs").glob("*.safetensors")}
    forget(root)
    monkeypatch.setattr("worker.analysis.slice_model", None)
    again = work(root, asked, ("model", "dataset", "analysis"))
    assert (anew["result"]["analysis"], again["result"]["analysis"]) == ("computed", "cached")
    assert again["outputs"] == anew["outputs"][:-1]
    for name in ("slice.safetensors", "checkpoint.safetensors"):
        assert (root / "outputs" / name).read_bytes() == anew_bytes[name]


def forget(root: Path) -> None:
    for path in (root / "checkpoints").iterdir():
        path.unlink()


def test_the_next_attempt_keeps_the_cut_that_was_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"kind": "slice", **IDS, "slicing": {"metric": "avg", "max_accuracy_drop": 0.3}}
    first = work(root, spec)["result"]
    monkeypatch.setattr("worker.analysis.resolve_targets", None)
    assert work(root, spec)["result"] == first
    assert ModelSlice.load(root / "outputs" / "slice.safetensors").config.max_accuracy_drop == 0.3


def test_an_attempt_that_dies_after_the_analysis_does_not_repeat_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"kind": "restructure", **IDS, "slicing": {"metric": "avg"}}
    undisturbed = work(root, spec)["result"]
    monkeypatch.setattr("worker.analysis.slice_model", None)
    (root / "outputs" / "slice.safetensors").unlink()
    resumed = work(root, spec)
    assert resumed["result"]["report"] == undisturbed["report"]
    assert resumed["result"]["analysis"] == "computed"
    assert resumed["outputs"][-1]["role"] == "analysis"


@pytest.mark.parametrize("damage", ["nonsense", "another model's"])
def test_a_stored_analysis_that_cannot_be_used_is_made_again(root: Path, damage: str) -> None:
    if damage == "nonsense":
        (root / "analysis").write_bytes(b"nonsense")
    else:
        model = trace(nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)), torch.zeros(1, 8))
        slice_model(model, [(torch.randn(16, 8), torch.arange(16) % 2)]).save(root / "analysis")
    outcome = work(root, {"kind": "slice", **IDS, "slicing": {"metric": "avg"}}, ("model", "dataset", "analysis"))
    assert outcome["result"]["analysis"] == "computed"
    assert outcome["outputs"][-1]["role"] == "analysis"


def test_checkpoints_that_do_not_fit_are_given_up(root: Path) -> None:
    (root / "checkpoints" / "analysis.safetensors").write_bytes(b"nonsense")
    assert work(root, {"kind": "slice", **IDS, "slicing": {"metric": "avg"}})["result"]["analysis"] == "computed"
    (root / "model").write_bytes(b"nonsense")
    (root / "checkpoints" / "analysis.safetensors").unlink()
    with pytest.raises(CheckpointError):
        work(root, {"kind": "slice", **IDS})


def test_accuracy_is_held_on_a_part_of_the_train_split(root: Path) -> None:
    slicing = {"metric": "avg", "max_accuracy_drop": 0.2}
    outcome = work(root, {"kind": "slice", **IDS, "slicing": slicing, "limit_per_category": 20})
    assert ModelSlice.load(root / "outputs" / "slice.safetensors").config.max_accuracy_drop == 0.2
    assert outcome["result"]["at_cut"]["compression_rate"] > 0


def test_too_few_samples_beside_those_held_out_are_refused_with_the_reason(root: Path) -> None:
    inputs, labels = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32), np.arange(8) % 2
    np.savez(root / "few.npz", x_train=inputs, y_train=labels)
    import_dataset(root / "few.npz", root / "few_dataset")
    (root / "dataset").unlink()
    (root / "few_dataset").rename(root / "dataset")
    with pytest.raises(DatasetError, match=r"there are 3\. A tenth .* is held out to measure max_accuracy_drop"):
        work(root, {"kind": "slice", **IDS, "slicing": {"metric": "avg", "max_accuracy_drop": 0.2}})
    assert "result" in work(root, {"kind": "slice", **IDS, "slicing": {"metric": "avg"}})


def test_layers_that_deeparc_takes_out_are_sewn_over(root: Path) -> None:
    slicing = {"strategy": "deeparc", "threshold": 0.2}
    sliced = work(root, {"kind": "slice", **IDS, "slicing": slicing, "sweep": [1.0]})["result"]
    assert sliced["sweep"] == [{"cut": 1.0, "compression_rate": 0.0, "accuracy": sliced["accuracy_before"]}]
    stored = {"kind": "restructure", "model_id": IDS["model_id"], "slice_id": "art_" + "0" * 26}
    files = ("model", "outputs/slice.safetensors")
    with pytest.raises(ConfigError, match="there is no data"):
        work(root, stored, files)
    result = work(root, stored | IDS, (*files, "dataset"))["result"]
    (seam,) = result["report"]["seams"]
    assert (seam["layers"], seam["kind"]) == (("2",), "linear")
    assert result["report"]["compression_rate"] == sliced["at_cut"]["compression_rate"]
    assert result["after"]["accuracy"] == sliced["at_cut"]["accuracy"]
    assert load_checkpoint(root / "outputs" / "checkpoint.safetensors")(torch.zeros(1, 8)).shape == (1, 2)


def test_what_is_left_is_reconstructed_where_there_is_data(root: Path) -> None:
    """Least squares unless something else is asked for; more samples when asked for."""
    asked = {"kind": "restructure", **IDS, "slicing": {"strategy": "random", "fraction": 0.5}}
    outcomes = {level: work(root, asked | {"reconstruct": level}) for level in ("none", "bias", "least_squares")}
    results = {level: outcome["result"] for level, outcome in outcomes.items()}
    assert results["none"]["report"]["reconstruction"] is None
    default = work(root, asked)
    assert default["result"]["report"] == results["least_squares"]["report"]
    assert default["fractions"] == sorted(default["fractions"])
    assert default["fractions"][-1] == 1
    done = results["least_squares"]["report"]["reconstruction"]
    assert (done["level"], done["samples"], done["samples_given"]) == ("least_squares", 80, 80)
    assert set(done["layers"]) == {"2", "4"}
    assert results["least_squares"]["after"]["loss"] != results["none"]["after"]["loss"]
    few = work(root, asked | {"calibration_per_category": 10})["result"]["report"]["reconstruction"]
    assert few["samples"] == 20
    stored = {"kind": "restructure", "model_id": IDS["model_id"], "slice_id": "art_" + "0" * 26}
    without = work(root, stored, ("model", "outputs/slice.safetensors"))["result"]
    assert without["report"]["reconstruction"] is None


@pytest.mark.parametrize("branches", ["union", "scatter"])
def test_branches_may_lose_neurons_of_their_own(root: Path, branches: str) -> None:
    model = trace(Residual().eval(), torch.zeros(1, 2, 8, 8))
    save_checkpoint(model.graph_module, (2, 8, 8), root / "model")
    data = [(torch.randn(24, 2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3)]
    slice_ = slice_model(model, data, SlicingConfig(strategy="global", metric="avg", fraction=0.5))
    slice_.save(root / "slice")
    spec = {"kind": "restructure", "model_id": IDS["model_id"], "slice_id": "art_" + "0" * 26, "branches": branches}
    outcome = work(root, spec, ("model", "slice"))
    left = parameters_after(model, slice_.merged(), branches)
    assert outcome["result"]["after"]["parameters"] == left
    assert (left < parameters_after(model, slice_.merged())) == (branches == "scatter")
    assert outcome["outputs"][1]["facts"]["parameters"] == left
    assert outcome["outputs"][1]["facts"]["coupled"] == [["stem.0", "first.3", "second.2"]]


def test_a_restructured_network_is_fine_tuned_and_pruned(root: Path) -> None:
    spec = {
        "kind": "restructure",
        **IDS,
        "slicing": {"metric": "avg", "threshold": 0.9},
        "fine_tuning": {"epochs": 2, "distill": True},
        "pruning": {"method": "erk", "amount": 0.2, "iterations": 3, "fine_tuning": {"epochs": 1}},
    }
    outcome = work(root, spec)
    result = outcome["result"]
    json.dumps(result)
    assert len(result["fine_tuning"]["curve"]) == 2
    pruning = result["pruning"]
    assert [record["iteration"] for record in pruning["iterations"]] == [0, 1, 2, 3]
    assert pruning["parameters_original"] == result["before"]["parameters"]
    assert pruning["parameters"] == result["after"]["parameters"] == result["report"]["parameters_after"]
    last = pruning["iterations"][-1]
    assert last["sparsity"] == pytest.approx(1 - 0.8**3, abs=0.02)
    assert last["accuracy"] == result["after"]["accuracy"]
    assert result["after_cut"]["accuracy"] is not None
    checkpoint = root / "outputs" / "checkpoint.safetensors"
    assert result["after"]["file_bytes"] == checkpoint.stat().st_size
    assert result["after"]["compressed_file_bytes"] == len(zlib.compress(checkpoint.read_bytes()))
    small = load_checkpoint(checkpoint)
    zeros = sum(int((value == 0).sum()) for value in small.parameters() if value.ndim > 1)
    assert zeros == last["weights_zeroed"]
    shown = [fraction for fraction in outcome["fractions"] if fraction is not None]
    assert shown[-1] == 1.0


def test_pruning_goes_on_where_an_attempt_was_killed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {
        "kind": "restructure",
        **IDS,
        "slicing": {"metric": "avg", "threshold": 0.9},
        "fine_tuning": {"epochs": 1},
        "pruning": {"max_accuracy_drop": 0.3, "fine_tuning": {"epochs": 1, "learning_rate": 0.01}},
    }
    whole = work(root, spec)
    expected = load_file(root / "outputs" / "checkpoint.safetensors")
    for file in (root / "checkpoints").iterdir():
        file.unlink()
    counted = iterating.choose_survivors
    calls = []

    def dying(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return counted(*arguments)

    monkeypatch.setattr(iterating, "choose_survivors", dying)
    with pytest.raises(KeyboardInterrupt):
        work(root, spec)
    assert (root / "checkpoints" / "iteration-2.safetensors").exists()
    resumed = work(root, spec)
    found = load_file(root / "outputs" / "checkpoint.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert resumed["result"]["pruning"]["result"] == whole["result"]["pruning"]["result"]


def test_fine_tuning_that_diverges_leaves_the_last_good_network(root: Path) -> None:
    spec = {
        "kind": "restructure",
        **IDS,
        "slicing": {"metric": "avg", "threshold": 0.9},
        "fine_tuning": {"optimizer": "sgd", "learning_rate": 1000, "momentum": 0, "weight_decay": 1000},
    }
    with pytest.raises(DivergedError):
        work(root, spec)
    assert load_checkpoint(root / "outputs" / "last_good.safetensors")(torch.zeros(1, 8)).isfinite().all()


def test_a_budget_that_no_cut_meets_is_refused_before_the_analysis(root: Path) -> None:
    spec = {"kind": "slice", **IDS, "slicing": {"metric": "avg", "target_size_bytes": 100}}
    with pytest.raises(TargetError, match="With one neuron in each layer"):
        work(root, spec)
    assert not (root / "outputs" / "analysis.safetensors").exists()
