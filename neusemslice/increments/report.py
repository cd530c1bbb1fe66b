"""What an increment did, and the result that is returned."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import fx

from neusemslice.checkpoint import save_checkpoint
from neusemslice.errors import ConfigError
from neusemslice.increments.deciding import TaskFree
from neusemslice.increments.heads import task_view
from neusemslice.increments.measuring import TaskAccuracy
from neusemslice.increments.memory import IncrementMemory
from neusemslice.restructuring import Restructured, restructure
from neusemslice.tracing import SliceableModel
from neusemslice.training import Training


@dataclass(frozen=True)
class FreeNeurons:
    """How many of a layer's neurons no task needs."""

    free: int
    neurons: int


@dataclass(frozen=True)
class IncrementReport:
    """What an increment did.

    Attributes:
        method: that it was done with.
        categories: outputs before and after.
        accuracies: of each task, in the order of learning; empty if there was no evaluation data.
        forgetting: mean over the earlier tasks of the accuracy (with the task known) that each lost since it was
            learned; None if nobody measured it then.
        drift: largest change of an earlier task's output while the new task was learned, on at most 1000 samples.
        bytes_kept: what the memory takes, by part.
        capacity: for each layer, the neurons that are free for the next task.
        free_parameters, parameters: entries that the next task may train, without its own outputs; and all.
        training: the epochs.
        seconds: wall time of everything.
    """

    method: str
    categories: tuple[int, int]
    accuracies: tuple[TaskAccuracy, ...]
    forgetting: float | None
    drift: float
    bytes_kept: dict[str, int]
    capacity: dict[str, FreeNeurons]
    free_parameters: int
    parameters: int
    training: Training
    seconds: float

    @property
    def average(self) -> dict[str, float | None]:
        """Mean over the tasks of each accuracy; None where a task has none."""
        means = {}
        for name in ("with_task", "vote", "task_free", "through_slice"):
            values = [getattr(accuracy, name) for accuracy in self.accuracies]
            means[name] = fmean(values) if values and None not in values else None
        return means

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"training": self.training.to_dict(), "average": self.average}


@dataclass(frozen=True, eq=False)
class Incremented:
    """The network that knows a further task, in eval mode and trainable, and what was done.

    Attributes:
        model: all tasks' outputs side by side, in the order of learning.
        memory: what to keep beside it: for the next increment, and to decide between tasks.
    """

    model: fx.GraphModule
    traced: SliceableModel
    memory: IncrementMemory
    report: IncrementReport

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.traced.input_shape

    def save(self, path: str | Path, memory: str | Path) -> None:
        """Write a checkpoint that `load_checkpoint` reads, and the memory that `IncrementMemory.load` reads."""
        save_checkpoint(self.model, self.input_shape, path, {"increment": self.report.to_dict()})
        self.memory.save(memory)

    def classify(self) -> TaskFree:
        """What decides the category of samples of any task.

        Raises:
            SliceMismatchError: the method keeps nothing to decide with.
        """
        return TaskFree(self.traced, self.memory)

    def task_network(self, number: int) -> Restructured:
        """One task's network alone: its critical neurons and its outputs, as small as they are.

        Where the task was cut loose this computes the task's outputs of the whole network, up to rounding.

        Args:
            number: of the task, from 0 in the order of learning.

        Raises:
            ConfigError: there is no such task.
        """
        return task_network(self.traced, self.memory, number)


def task_network(model: SliceableModel, memory: IncrementMemory, number: int) -> Restructured:
    """See `Incremented.task_network`."""
    if not 0 <= number < len(memory.tasks):
        raise ConfigError(
            f"There is no task {number}.", field="number", hint=f"Tasks are numbered 0 to {len(memory.tasks) - 1}."
        )
    learned = memory.tasks[number]
    view = task_view(model, learned.task)
    kept = {layer: mask for layer, mask in (learned.kept or {}).items() if bool(mask.any())}
    return restructure(view, kept)
