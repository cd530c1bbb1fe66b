"""The demo's own networks and data: scikit-learn's handwritten digits, 1,797 real images of 8 x 8 pixels."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

TEST_IMAGES = 450
EPOCHS = 15
INPUT_SHAPE = [1, 8, 8]


@dataclass(frozen=True)
class TrainedNetwork:
    """A network as an outside client has it: weights in a file, the architecture as data."""

    name: str
    weights: Path
    architecture: dict[str, Any]


def load_digits(path: Path) -> Path:
    """Write the digits to an .npz file, a quarter of them as the test split."""
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.images[order].astype(np.uint8), digits.target[order].astype(np.int64)
    train, test = slice(TEST_IMAGES, None), slice(0, TEST_IMAGES)
    np.savez(path, x_train=images[train], y_train=labels[train], x_test=images[test], y_test=labels[test])
    return path


def train_networks(dataset: Path, folder: Path) -> list[TrainedNetwork]:
    """Train a convolutional network and an MLP and leave their weights in `folder`."""
    convolutional = [
        _layer("Conv2d", in_channels=1, out_channels=32, kernel_size=3, padding=1),
        _layer("BatchNorm2d", num_features=32),
        _layer("ReLU"),
        _layer("Conv2d", in_channels=32, out_channels=64, kernel_size=3, padding=1),
        _layer("BatchNorm2d", num_features=64),
        _layer("ReLU"),
        _layer("MaxPool2d", kernel_size=2),
        _layer("Flatten"),
        _layer("Linear", in_features=1024, out_features=128),
        _layer("ReLU"),
        _layer("Dropout", p=0.3),
        _layer("Linear", in_features=128, out_features=10),
    ]
    cnn = {"builder": "layers", "kwargs": {"layers": convolutional}, "input_shape": INPUT_SHAPE}
    mlp = {"builder": "mlp", "kwargs": {"sizes": [64, 256, 128, 10]}, "input_shape": INPUT_SHAPE}
    return [_train(name, spec, dataset, folder) for name, spec in (("cnn", cnn), ("mlp", mlp))]


def _layer(kind: str, **kwargs: Any) -> dict[str, Any]:
    return {"type": kind, "kwargs": kwargs}


def _train(name: str, architecture: dict[str, Any], dataset: Path, folder: Path) -> TrainedNetwork:
    data = np.load(dataset)
    inputs = torch.from_numpy(data["x_train"]).float()[:, None] / 16
    labels = torch.from_numpy(data["y_train"])
    torch.manual_seed(0)
    network = _build(architecture)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    weights = folder / f"{name}.safetensors"
    save_file(network.state_dict(), weights)
    return TrainedNetwork(name, weights, architecture)


def _build(architecture: dict[str, Any]) -> nn.Module:
    """An ordinary torch network, initialised to be trained."""
    kwargs = architecture["kwargs"]
    if architecture["builder"] == "layers":
        return nn.Sequential(*(getattr(nn, layer["type"])(**layer["kwargs"]) for layer in kwargs["layers"]))
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(kwargs["sizes"]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
