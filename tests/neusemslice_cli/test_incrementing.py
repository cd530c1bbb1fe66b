"""`neusemslice increment` on files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from neusemslice import IncrementMemory, load_checkpoint
from neusemslice.errors import ConfigError, DatasetError
from tests.neusemslice_cli.test_files import folder, run

__all__ = ["folder"]

SHORT = ("--fraction", "0.5", "--metric", "avg", "--training", '{"epochs": 2, "batch_size": 8}', "--directions", "2")
NETWORK = ("net.json", "--weights", "net.safetensors")


@pytest.fixture
def data(folder: Path) -> Path:
    """Images of five categories."""
    images = np.random.default_rng(0).integers(0, 255, (80, 4, 4), dtype=np.uint8)
    labels = np.arange(80) % 5
    np.savez("five.npz", x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])
    return folder


def test_one_file_serves_task_after_task(data: Path) -> None:
    options = ("--data", "five.npz", "--new", "five.npz", "--method", "global", *SHORT)
    printed = run("increment", *NETWORK, *options, "--labels", "4,0", "--new-labels", "1,2")
    assert "outputs: 2 before, 4 now" in printed
    assert "task 1: with_task" in printed
    assert "neurons are free" in printed
    second = ("--memory", "memory.safetensors", "--labels", "4,0,1,2", "--new-labels", "3")
    printed = run("increment", "incremented.safetensors", *options, *second, "--output", "third.safetensors")
    assert "task 2: " in printed
    assert load_checkpoint(data / "third.safetensors")(torch.zeros(1, 1, 4, 4)).shape == (1, 5)
    assert len(IncrementMemory.load(data / "memory.safetensors").tasks) == 3


def test_earlier_outputs_stay_by_default(data: Path) -> None:
    options = ("--data", "data.npz", "--new", "five.npz", "--new-labels", "2,3,4", "--threshold", "0.2")
    printed = run("increment", *NETWORK, *options, "--training", json.dumps({"epochs": 1}))
    assert "drift of earlier outputs: 0\n" in printed
    assert "task_free" in printed


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (("--new", "five.npz"), ConfigError, "needs samples of what the network knows"),
        (("--new", "five.npz", "--data", "five.npz"), DatasetError, "the model has categories 0 to 1"),
        (("--new", "five.npz", "--new-labels", "one"), ConfigError, "--new-labels is 'one'"),
        (("--new", "five.npz", "--new-labels", "7"), ConfigError, r"no sample has the labels \[7\]"),
        (("--new", "five.npz", "--replay-fraction", "0.1"), ConfigError, "no parameter of method='isolated'"),
        (("--new", "five.npz", "--memory-output", "no/where"), ConfigError, "no folder"),
    ],
)
def test_what_cannot_be_done_is_refused(data: Path, options, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run("increment", *NETWORK, *options)
