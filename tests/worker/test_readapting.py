"""What the `readapt` job does, on files, without a supervisor."""

import os
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

from neusemslice import SlicingConfig, load_checkpoint, slice_model, trace
from neusemslice.data import import_dataset, open_dataset
from neusemslice.errors import DatasetError, DivergedError
from tests.worker.test_kinds import IDS, root, work
from worker.kinds import carry_out
from worker.order import Limits, Order

__all__ = ["root"]


def test_a_model_is_readapted_to_an_attack(root: Path) -> None:
    spec = {
        "kind": "readapt",
        **IDS,
        "method": "semantic+deeparc",
        "attack": {"method": "pgd", "epsilons": [0.05, 0.1], "steps": 3, "value_range": [-4, 5]},
        "samples": 30,
        "training": {"epochs": 4, "batch_size": 16, "patience": 2},
        "deeparc_threshold": 0.2,
    }
    outcome = work(root, spec)
    report = outcome["result"]["report"]
    assert [file["name"] for file in outcome["outputs"]] == [
        "report.json",
        "slice.safetensors",
        "checkpoint.safetensors",
        "analysis.safetensors",
    ]
    assert (outcome["result"]["evaluated_on"], outcome["result"]["analysis"]) == ("test", "computed")
    assert (report["samples"], report["accuracies"]["test_samples"], report["accuracies"]["attacked_others"]) == (
        27,
        40,
        30,
    )
    assert 0 < report["training_parameter_ratio"] < 1
    assert report["config"]["deeparc_threshold"] == 0.2
    assert outcome["fractions"] == sorted(outcome["fractions"])
    assert outcome["fractions"][-1] == 1
    before, after = (
        load_checkpoint(root / place).state_dict() for place in ("model", "outputs/checkpoint.safetensors")
    )
    assert torch.equal(before["2.weight"], after["2.weight"])  # redundant to deeparc
    assert not torch.equal(before["4.weight"], after["4.weight"])
    assert outcome["outputs"][2]["facts"]["parameters"] == report["parameters"]


def test_a_model_learns_new_samples_by_a_stored_slice(root: Path) -> None:
    model = trace(load_checkpoint(root / "model"), torch.zeros(1, 8))
    data = open_dataset(root / "dataset").batches("train", 32)
    slice_model(model, data, SlicingConfig(threshold=0.99)).save(root / "slice")
    generator = np.random.default_rng(1)
    np.savez(root / "b.npz", x_train=generator.normal(size=(9, 8)).astype(np.float32), y_train=np.zeros(9, int))
    import_dataset(root / "b.npz", root / "new_dataset")
    spec = {
        "kind": "readapt",
        **IDS,
        "new_dataset_id": "ds_" + "1" * 26,
        "slice_id": "art_" + "0" * 26,
        "cut": 0.5,
        "samples": 20,
    }
    outcome = work(root, spec, ("model", "dataset", "new_dataset", "slice"))
    report = outcome["result"]["report"]
    assert [file["name"] for file in outcome["outputs"]] == ["report.json", "checkpoint.safetensors"]
    assert (outcome["result"]["cut"], report["config"]["slicing"]["threshold"]) == (0.5, 0.5)
    assert (report["samples"], report["counterparts"], report["accuracies"]["reattack"]) == (20, 9, None)
    assert outcome["fractions"] == sorted(outcome["fractions"])


def test_new_samples_of_other_categories_are_refused(root: Path) -> None:
    for shape, labels, words in (((4, 7), [0, 1, 0, 1], "samples are"), ((4, 8), [0, 1, 2, 2], "3 categories")):
        np.savez(root / "b.npz", x_train=np.zeros(shape, np.float32), y_train=np.array(labels))
        (root / "new_dataset").unlink(missing_ok=True)
        import_dataset(root / "b.npz", root / "new_dataset")
        with pytest.raises(DatasetError, match=words):
            work(
                root,
                {"kind": "readapt", **IDS, "new_dataset_id": "ds_" + "1" * 26},
                ("model", "dataset", "new_dataset"),
            )


def test_a_training_that_diverges_leaves_its_last_good_network(root: Path) -> None:
    left: list[dict[str, Any]] = []
    spec = {
        "kind": "readapt",
        **IDS,
        "method": "full",
        "attack": {},
        "samples": 20,
        "training": {"optimizer": "sgd", "learning_rate": 1000, "weight_decay": 1000, "epochs": 50, "batch_size": 4},
    }
    limits = Limits(memory_bytes=2**33, file_bytes=2**33, threads=torch.get_num_threads())
    order = Order(spec=spec, files={name: name for name in ("model", "dataset")}, values={}, limits=limits)
    reading, writing = os.pipe()
    try:
        with pytest.raises(DivergedError):
            carry_out(order, root, writing, Event(), left)
    finally:
        os.close(reading)
        os.close(writing)
    assert left == [{"name": "last_good.safetensors", "role": "artifact"}]
    network = load_checkpoint(root / "outputs" / "last_good.safetensors")
    assert all(bool(value.isfinite().all()) for value in network.state_dict().values())
