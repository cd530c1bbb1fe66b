"""`neusemslice readapt` on files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from neusemslice import load_checkpoint
from neusemslice.errors import ConfigError, SliceMismatchError
from tests.neusemslice_cli.test_files import folder, run

__all__ = ["folder"]

MODEL = ("net.json", "--weights", "net.safetensors", "--data", "data.npz", "--preprocess", '{"scale": 0.0039}')
SHORT = ("--samples", "20", "--training", '{"epochs": 2, "batch_size": 8}')


def test_a_network_is_repaired_against_an_attack(folder: Path) -> None:
    attack = ("--attack", "pgd", "--epsilons", "0.02,0.05", "--steps", "3", "--value-range", "0,255")
    printed = run("readapt", *MODEL, *attack, *SHORT, "--threshold", "0.8")
    assert "(TPR)" in printed
    assert "reattack: " in printed
    assert printed.count("epoch ") == 2
    assert load_checkpoint(folder / "readapted.safetensors")(torch.zeros(1, 1, 4, 4)).shape == (1, 2)


def test_a_network_learns_new_samples_by_stored_slices(folder: Path) -> None:
    np.savez(folder / "new.npz", x_train=np.full((6, 4, 4), 9, np.uint8), y_train=np.arange(6) % 2)
    run("slice", *MODEL, "--threshold", "0.8")
    run("slice", *MODEL, "--strategy", "deeparc", "--threshold", "0.05", "--output", "layers.safetensors")
    new = ("--new", "new.npz", "--slice", "slice.safetensors")
    printed = run("readapt", *MODEL, *new, *SHORT)
    assert "reattack: null" in printed
    both = run("readapt", *MODEL, *new, "--slice", "layers.safetensors", "--method", "semantic+deeparc", *SHORT)
    one, two = (float(found.split("trained: ")[1].split("%")[0]) for found in (printed, both))
    assert two < one
    with pytest.raises(SliceMismatchError, match="takes slices by"):
        run("readapt", *MODEL, *new, "--method", "semantic+deeparc", *SHORT)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "neither an attack nor"),
        (("--attack", "fgsm", "--epsilons", "8"), "out of range"),
        (("--attack", "fgsm", "--epsilons", "much"), "--epsilons is 'much'"),
        (("--attack", "fgsm", "--value-range", "5,1"), "is no range"),
        (("--attack", "fgsm", "--method", "full", "--threshold", "0.9"), "method=full takes none"),
        (("--attack", "fgsm", "--training", "[]"), "no JSON object"),
        (("--attack", "fgsm", "--training", '{"rate": 1}'), "is no field of"),
        (("--attack", "fgsm", "--output", "no/where"), "no folder"),
    ],
)
def test_what_cannot_be_done_is_refused(folder: Path, options: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run("readapt", *MODEL, *options)
