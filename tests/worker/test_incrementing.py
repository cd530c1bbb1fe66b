"""What the `increment` job does, on files, without a supervisor."""

import os
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from torch import nn

from neusemslice import IncrementMemory, TaskFree, load_checkpoint, trace
from neusemslice.checkpoint import save_checkpoint
from neusemslice.data import import_dataset
from neusemslice.errors import DivergedError
from tests.worker.test_kinds import work
from worker.kinds import carry_out
from worker.order import Limits, Order

IDS = {"model_id": "mdl_" + "0" * 26, "dataset_id": "ds_" + "0" * 26, "new_dataset_id": "ds_" + "0" * 26}
QUICK = {
    "kind": "increment",
    **IDS,
    "labels": [3, 1],
    "slicing": {"strategy": "global", "metric": "avg", "fraction": 0.5},
    "training": {"epochs": 3, "batch_size": 16, "learning_rate": 0.01},
    "decision_directions": 4,
}
FILES = ("model", "dataset", "new_dataset")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An attempt's folder with a network of two outputs and one dataset of six categories, for all tasks."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 18), nn.ReLU(), nn.Linear(18, 2))
    save_checkpoint(trace(network, torch.zeros(1, 8)).graph_module, (8,), tmp_path / "model")
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 6
    inputs = (generator.normal(size=(240, 8)) + 3 * generator.normal(size=(6, 8))[labels]).astype(np.float32)
    np.savez(tmp_path / "a.npz", x_train=inputs[:180], y_train=labels[:180], x_test=inputs[180:], y_test=labels[180:])
    for name in ("dataset", "new_dataset"):
        import_dataset(tmp_path / "a.npz", tmp_path / name)
    for folder in ("outputs", "checkpoints"):
        (tmp_path / folder).mkdir()
    return tmp_path


def test_one_dataset_serves_task_after_task(root: Path) -> None:
    """Labels 3 and 1 are the model's outputs, 0 and 5 come after them, then 2."""
    outcome = work(root, QUICK | {"new_labels": [0, 5]}, FILES)
    report = outcome["result"]["report"]
    assert [file["name"] for file in outcome["outputs"]] == [
        "report.json",
        "memory.safetensors",
        "checkpoint.safetensors",
    ]
    facts = outcome["outputs"][2]["facts"]
    assert (facts["categories"], facts["parameters"]) == (4, report["parameters"])
    assert outcome["result"]["evaluated_on"] == ["test", "test"]
    assert [(task["first"], task["categories"]) for task in report["accuracies"]] == [(0, 2), (2, 2)]
    assert report["accuracies"][1]["with_task"] > 0.8
    assert report["drift"] == 0
    assert outcome["fractions"] == sorted(outcome["fractions"])
    assert outcome["fractions"][-1] == 1
    first = load_checkpoint(root / "outputs" / "checkpoint.safetensors")
    for name, place in (("checkpoint", "model"), ("memory", "memory")):
        (root / "outputs" / f"{name}.safetensors").rename(root / place)
    for file in (root / "checkpoints").glob("*"):
        file.unlink()
    spec = QUICK | {"memory_id": "art_" + "0" * 26, "labels": [3, 1, 0, 5], "new_labels": [2]}
    second = work(root, spec, (*FILES, "memory"))
    assert second["result"]["report"]["categories"] == (4, 5)
    assert len(second["result"]["report"]["accuracies"]) == 3
    last = trace(load_checkpoint(root / "outputs" / "checkpoint.safetensors"), torch.zeros(1, 8))
    inputs = torch.randn(20, 8)
    assert torch.equal(last(inputs)[:, :4], first(inputs))
    decide = TaskFree(last, IncrementMemory.load(root / "outputs" / "memory.safetensors"))
    assert set(decide(inputs).tolist()) <= set(range(5))


def test_a_training_that_diverges_leaves_the_last_good_network(root: Path) -> None:
    training = {"epochs": 50, "optimizer": "sgd", "learning_rate": 1000, "weight_decay": 1000}
    spec = QUICK | {"method": "retrain", "slicing": None, "dataset_id": None, "labels": None, "training": training}
    files = {"model": "model", "new_dataset": "new_dataset"}
    limits = Limits(memory_bytes=2**33, file_bytes=2**33, threads=torch.get_num_threads())
    left: list[dict[str, object]] = []
    reading, writing = os.pipe()
    try:
        with pytest.raises(DivergedError):
            carry_out(Order(spec=spec, files=files, values={}, limits=limits), root, writing, Event(), left)
    finally:
        os.close(reading)
        os.close(writing)
    assert left == [{"name": "last_good.safetensors", "role": "artifact"}]
    assert load_checkpoint(root / "outputs" / "last_good.safetensors")(torch.zeros(1, 8)).shape == (1, 8)
