"""What has to be kept, beside the network, to decide between tasks and to learn the next one: one safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neusemslice.errors import CheckpointError
from neusemslice.increments.discriminant import Discriminant
from neusemslice.increments.heads import Task
from neusemslice.safetensors_file import replacing
from neusemslice.tracing import SliceableModel
from neusemslice.training import InMemory

FORMAT = 1
_KEY = "neusemslice_increment"


@dataclass(frozen=True, eq=False)
class Learned:
    """A task that the network knows.

    Attributes:
        task: its outputs.
        kept: for each layer, True for the neurons that the task needs, those of earlier tasks included; None where
            nothing was frozen.
        accuracy: among the task's own categories, when it was learned; None if nobody measured it.
    """

    task: Task
    kept: Mapping[str, Bool[Tensor, " _"]] | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class IncrementMemory:
    """What is kept of all tasks so far.

    Attributes:
        model_fingerprint: of the network it belongs to.
        method: that the tasks were learned with.
        tasks: in the order of learning.
        discriminant: to decide between tasks; None where the neurons it would look at may change.
        exemplars: samples of earlier tasks, for the methods that replay.
    """

    model_fingerprint: str
    method: str
    tasks: tuple[Learned, ...]
    discriminant: Discriminant | None
    exemplars: InMemory | None

    def of_model(self, model: SliceableModel) -> "IncrementMemory":
        """The same, belonging to this model."""
        return replace(self, model_fingerprint=model.fingerprint)

    def bytes_kept(self) -> dict[str, int]:
        """Of each part: `neurons` (one bit a neuron and task), `decision`, `exemplars`."""
        bits = sum(sum((len(mask) + 7) // 8 for mask in (learned.kept or {}).values()) for learned in self.tasks)
        stored = self.exemplars
        return {
            "neurons": bits,
            "decision": 0 if self.discriminant is None else self.discriminant.bytes_kept,
            "exemplars": 0
            if stored is None
            else sum(tensor.numel() * tensor.element_size() for tensor in (stored.inputs, stored.labels)),
        }

    def save(self, path: str | Path) -> None:
        """Write one file that `load` reads back, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for number, learned in enumerate(self.tasks):
            for layer, mask in (learned.kept or {}).items():
                tensors[f"kept/{number}/{layer}"] = _packed(mask)
        if self.discriminant is not None:
            tensors |= {f"decision/{name}": tensor for name, tensor in self.discriminant.tensors().items()}
        if self.exemplars is not None:
            tensors |= {"exemplars/inputs": self.exemplars.inputs, "exemplars/labels": self.exemplars.labels}
        about = {
            "format": FORMAT,
            "model_fingerprint": self.model_fingerprint,
            "method": self.method,
            "tasks": [_described(learned) for learned in self.tasks],
        }
        with replacing(Path(path)) as draft:
            save_file(
                {name: tensor.clone().contiguous() for name, tensor in tensors.items()},
                draft,
                {_KEY: json.dumps(about)},
            )

    @classmethod
    def load(cls, path: str | Path) -> "IncrementMemory":
        """Read what `save` wrote. Nothing in the file is executed.

        Raises:
            CheckpointError: the file is no memory of an increment, is damaged, or was written by a later release.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[_KEY])
                if about["format"] != FORMAT:
                    raise CheckpointError(
                        f"{path} is a memory of format {about['format']!r}; this release reads {FORMAT}.",
                        hint="Read it with the release that wrote it.",
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no mapping
            return cls(
                str(about["model_fingerprint"]),
                str(about["method"]),
                tuple(_read(number, values, tensors) for number, values in enumerate(about["tasks"])),
                _discriminant(tensors),
                InMemory(tensors["exemplars/inputs"], tensors["exemplars/labels"])
                if "exemplars/inputs" in tensors
                else None,
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is no memory of an increment, or is damaged: {type(error).__name__}: {error}.",
                hint="Use a file written by IncrementMemory.save.",
            ) from error


def _described(learned: Learned) -> dict[str, Any]:
    return {
        "first": learned.task.first,
        "categories": learned.task.categories,
        "heads": list(learned.task.heads),
        "accuracy": learned.accuracy,
        "layers": None if learned.kept is None else {layer: len(mask) for layer, mask in learned.kept.items()},
    }


def _read(number: int, values: dict[str, Any], tensors: Mapping[str, Tensor]) -> Learned:
    layers = values["layers"]
    kept = None
    if layers is not None:
        kept = {layer: _unpacked(tensors[f"kept/{number}/{layer}"], size) for layer, size in layers.items()}
    task = Task(int(values["first"]), int(values["categories"]), tuple(map(str, values["heads"])))
    return Learned(task, kept, None if values["accuracy"] is None else float(values["accuracy"]))


def _discriminant(tensors: Mapping[str, Tensor]) -> Discriminant | None:
    if "decision/counts" not in tensors:
        return None
    return Discriminant(**{item.name: tensors[f"decision/{item.name}"] for item in fields(Discriminant)})


def _packed(mask: Bool[Tensor, " neurons"]) -> Tensor:
    """Eight neurons a byte."""
    padded = torch.zeros((len(mask) + 7) // 8 * 8, dtype=torch.uint8)
    padded[: len(mask)] = mask
    return (padded.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1).to(torch.uint8)


def _unpacked(packed: Tensor, neurons: int) -> Bool[Tensor, " neurons"]:
    if packed.dtype != torch.uint8 or packed.shape != ((neurons + 7) // 8,):
        raise ValueError(f"its neurons are {packed.dtype} of shape {tuple(packed.shape)}")
    return (packed[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[:neurons].bool()
