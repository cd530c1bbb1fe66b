"""Where a training stood after an epoch, in one file: safetensors and JSON, no pickle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from neusemslice.errors import CheckpointError
from neusemslice.safetensors_file import replacing

_KEY = "neusemslice_training"


@dataclass(frozen=True, eq=False)
class SavedState:
    """A training after some epochs.

    Attributes:
        about: JSON values: the records of the epochs, and what tells this training from others.
        network: its tensors by name.
        best: those of the best epoch so far, where one is looked for; otherwise empty.
        optimizer: the optimizer's tensors, by `NUMBER/NAME` of the parameter's place among those that train.
    """

    about: dict[str, Any]
    network: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]

    def save(self, path: Path) -> None:
        """Write it, whole or not at all; an earlier state at `path` is replaced at the end."""
        parts = {"network": self.network, "best": self.best, "optimizer": self.optimizer}
        tensors = {
            f"{part}/{name}": tensor.detach().cpu().clone().contiguous()
            for part, named in parts.items()
            for name, tensor in named.items()
        }
        with replacing(path) as draft:
            save_file(tensors, draft, {_KEY: json.dumps(self.about)})

    @classmethod
    def load(cls, path: Path) -> "SavedState":
        """Read what `save` wrote.

        Raises:
            CheckpointError: the file is no saved training, or is damaged.
            OSError: the file cannot be read.
        """
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "optimizer": {}}
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[_KEY])
                for name in file.keys():  # noqa: SIM118 it is no mapping
                    part, _, own = name.partition("/")
                    parts[part][own] = file.get_tensor(name)
        except (SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path} is no saved training, or is damaged: {type(error).__name__}: {error}.",
                hint="Delete it to train from the start.",
            ) from error
        return cls(about, **parts)


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers by name, also of those that a checkpoint leaves out."""
    named = (*network.named_parameters(), *network.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}


def put_back(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the values that `tensors_of` copied."""
    with torch.no_grad():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            tensor.copy_(tensors[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors, such as momenta and step counts."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}/{name}": value
        for number, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def put_back_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimizer what `optimizer_tensors` found in one like it."""
    state: dict[int, dict[str, Tensor]] = {}
    for place, tensor in tensors.items():
        number, _, name = place.partition("/")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
