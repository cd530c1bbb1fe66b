"""What is put aside of a task while its samples are there: its critical neurons, what decides, and exemplars."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from neusemslice.errors import CheckpointError
from neusemslice.increment_config import IncrementConfig
from neusemslice.increments.discriminant import Discriminant, find_directions
from neusemslice.increments.features import FeatureReader
from neusemslice.increments.heads import Task
from neusemslice.increments.memory import IncrementMemory, Learned
from neusemslice.increments.samples import both, choose_exemplars, first_of_each
from neusemslice.increments.settling import settle
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.safetensors_file import read_json_metadata, replacing
from neusemslice.tracing import SliceableModel
from neusemslice.training import Samples, batches_of

BASIS_PER_CATEGORY = 400
"""Samples of each category of the first task that the directions of the decision are found from."""
SETTLED = "settled.safetensors"
MEMORY = "memory.safetensors"
_KEY = "neusemslice_settled"


class Remembering:
    """Settles tasks inside one model, whose network it changes in place."""

    def __init__(
        self,
        model: SliceableModel,
        config: IncrementConfig,
        on_progress: OnProgress | None,
        should_stop: ShouldStop | None,
    ) -> None:
        self._model = model
        self.config, self.on_progress, self.should_stop = config, on_progress, should_stop

    def first(
        self, task: Task, samples: Samples | None, accuracy: float | None, checkpoint: Path | None
    ) -> IncrementMemory:
        """The memory of a network that has not been incremented yet.

        Args:
            accuracy: of the task, before anything is done.
            checkpoint: a folder that the settled network is put into, and taken from if it is there.
        """
        if checkpoint is not None and (checkpoint / MEMORY).exists():
            return self._resumed(checkpoint)
        empty = IncrementMemory(self._model.fingerprint, self.config.method, (), None, None)
        memory = empty if samples is None else self._with(empty, task, samples, accuracy, "")
        if samples is None:
            memory = replace(empty, tasks=(Learned(task, None, accuracy),))
        if checkpoint is not None:
            tensors = {name: value.cpu().clone() for name, value in self._model.graph_module.state_dict().items()}
            with replacing(checkpoint / SETTLED) as draft:
                save_file(tensors, draft, {_KEY: json.dumps(self._identity)})
            memory.save(checkpoint / MEMORY)
        return memory

    def further(self, memory: IncrementMemory, task: Task, samples: Samples, accuracy: float | None) -> IncrementMemory:
        """The memory with a task that the network has just learned."""
        return self._with(memory, task, samples, accuracy, "_new")

    @property
    def _identity(self) -> dict[str, Any]:
        """What tells this increment from others."""
        return {"config": self.config.to_dict(), "categories": self._model.categories}

    def _resumed(self, checkpoint: Path) -> IncrementMemory:
        """Go on from the network as it was when its first task was settled."""
        memory = IncrementMemory.load(checkpoint / MEMORY)
        identity = read_json_metadata(checkpoint / SETTLED, _KEY, CheckpointError)
        if identity != self._identity or memory.model_fingerprint != self._model.fingerprint:
            raise CheckpointError(
                f"{checkpoint} belongs to another increment.", hint="Empty it to begin anew, or name another folder."
            )
        _put_back(self._model.graph_module, load_file(checkpoint / SETTLED))
        return memory

    def _with(
        self, memory: IncrementMemory, task: Task, samples: Samples, accuracy: float | None, ending: str
    ) -> IncrementMemory:
        config, kept, discriminant, exemplars = self.config, None, memory.discriminant, memory.exemplars
        if config.freezes:
            kept = settle(self._model, task, samples, memory.tasks, config, self._progress(ending))
        if config.isolates:
            assert kept is not None
            discriminant = self._known(memory, kept, task, samples)
        if config.replays:
            assert config.replay_fraction is not None
            exemplars = both(exemplars, choose_exemplars(samples, config.replay_fraction, config.seed + task.first))
        tasks = (*memory.tasks, Learned(task, kept, accuracy))
        return replace(memory, tasks=tasks, discriminant=discriminant, exemplars=exemplars)

    def _known(self, memory: IncrementMemory, kept: dict[str, Tensor], task: Task, samples: Samples) -> Discriminant:
        """What decides between tasks, with this one's categories."""
        first = memory.tasks[0].kept if memory.tasks else kept
        assert first is not None
        reader = FeatureReader(self._model, first)
        discriminant = memory.discriminant
        batch_size = self.config.training.batch_size
        if discriminant is None:
            few = batches_of(first_of_each(samples, BASIS_PER_CATEGORY), batch_size)
            features = torch.cat([features for features, _ in reader.batches(few)])
            discriminant = find_directions(features, reader.sizes, self.config.decision_directions)
        return discriminant.with_categories(reader.batches(batches_of(samples, batch_size)), task.labels)

    def _progress(self, ending: str) -> Progress:
        """Reports the stages under names of their own."""
        report = self.on_progress
        if report is None:
            return Progress(None, self.should_stop)
        return Progress(lambda stage, done, total: report(f"{stage}{ending}", done, total), self.should_stop)


def _put_back(network: fx.GraphModule, tensors: dict[str, Tensor]) -> None:
    """Give the network these tensors; biases that came with cutting loose are new to it."""
    present = network.state_dict()
    for name, tensor in tensors.items():
        if name not in present:
            path, _, own = name.rpartition(".")
            layer = network.get_submodule(path)
            like = layer.get_parameter("weight")
            layer.register_parameter(own, nn.Parameter(tensor.to(like.device, like.dtype)))
    network.load_state_dict(tensors)
