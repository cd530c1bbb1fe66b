"""Which category a sample belongs to: with the task given, by the plain vote of all outputs, or task-free."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from neusemslice.errors import SliceMismatchError
from neusemslice.increments.features import FeatureReader
from neusemslice.increments.heads import Task
from neusemslice.increments.memory import IncrementMemory
from neusemslice.tracing import SliceableModel
from neusemslice.training import logits_of


def check_memory(model: SliceableModel, memory: IncrementMemory) -> None:
    """Raises SliceMismatchError unless the memory belongs to the model."""
    if memory.model_fingerprint != model.fingerprint:
        raise SliceMismatchError(
            "The memory was made with another network: the fingerprints differ.",
            hint="Give the network and the memory of one increment.",
        )


class TaskFree:
    """Decides without being told the task, with two experts: what the first task's critical neurons' values look like,
    and the outputs themselves.

    The task is that of the category c with the largest log density of the values plus logit of c; its outputs alone
    then say which category. Both experts are in natural logarithms, hence their plain sum.

    Raises:
        SliceMismatchError: the memory belongs to another model, or has nothing to decide with.
    """

    def __init__(self, model: SliceableModel, memory: IncrementMemory) -> None:
        check_memory(model, memory)
        first = memory.tasks[0].kept
        if memory.discriminant is None or first is None:
            raise SliceMismatchError(
                f"The memory of method={memory.method!r} has nothing to decide between tasks with.",
                hint="Learn the increment with method='isolated'.",
            )
        self._model, self._discriminant = model, memory.discriminant
        self._tasks = [learned.task for learned in memory.tasks]
        self._reader = FeatureReader(model, first)

    def __call__(self, inputs: Float[Tensor, "batch ..."]) -> Int64[Tensor, " batch"]:
        """The category of each sample, on the CPU."""
        moved = inputs.to(self._model.device, self._model.dtype)
        with torch.no_grad():
            logits = logits_of(self._model.graph_module, moved).cpu()
        return self.decide(moved, logits)

    def decide(self, inputs: Float[Tensor, "batch ..."], logits: Float[Tensor, "batch categories"]) -> Tensor:
        """The same, where the logits are there already."""
        scores = self._discriminant.scores(self._reader.read(inputs)) + logits.double()
        best = torch.stack([task.of(scores).amax(1) for task in self._tasks], 1).argmax(1)
        within = torch.stack([vote(logits, task) for task in self._tasks], 1)
        return within.gather(1, best[:, None])[:, 0]


def vote(logits: Float[Tensor, "batch categories"], task: Task) -> Int64[Tensor, " batch"]:
    """The category of the task's largest logit."""
    return task.of(logits).argmax(1) + task.first
