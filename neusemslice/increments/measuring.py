"""How well a network does on each of its tasks, and how far its outputs for earlier ones moved."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neusemslice.copying import copy_graph
from neusemslice.errors import DatasetError
from neusemslice.increments.deciding import TaskFree, vote
from neusemslice.increments.heads import Task
from neusemslice.increments.memory import IncrementMemory, Learned
from neusemslice.increments.ownership import cut_of
from neusemslice.increments.samples import of_task
from neusemslice.masking import silence
from neusemslice.modes import evaluating
from neusemslice.progress import Progress
from neusemslice.tracing import SliceableModel
from neusemslice.training import Samples, Subset, batches_of, logits_of

DRIFT_SAMPLES = 1000
"""Samples on which outputs are compared before and after."""


@dataclass(frozen=True)
class TaskAccuracy:
    """Of one task's samples.

    Attributes:
        first, categories: which outputs are the task's.
        before: as `with_task`, before this increment; None for the new task.
        with_task: accuracy among the task's own categories, the task being known.
        vote: accuracy of the largest of all outputs.
        task_free: accuracy where what the critical neurons' values look like decides the task; None where nothing can.
        through_slice: as `with_task`, with all but the task's critical neurons silenced; None where none are frozen.
    """

    first: int
    categories: int
    before: float | None
    with_task: float
    vote: float
    task_free: float | None
    through_slice: float | None


class Judge:
    """Samples of all tasks, on which networks are measured.

    Attributes:
        samples: all of them.
        before: accuracy of each earlier task among its own categories, before anything was done.

    Raises:
        DatasetError: a task has no sample.
    """

    def __init__(self, samples: Samples, tasks: Sequence[Task], network: nn.Module, batch_size: int) -> None:
        self.samples, self._tasks, self._batch_size = samples, tuple(tasks), batch_size
        self._of = {task: of_task(samples, task) for task in tasks}
        for task, own in self._of.items():
            if len(own) == 0:
                raise DatasetError(
                    f"The evaluation data has no sample of the categories {task.first} to {task.labels[-1]}.",
                    hint="Give samples of every task, earlier ones included.",
                )
        self.before = {task: self.with_task(network, task) for task in tasks[:-1]}

    def with_task(self, network: nn.Module, task: Task) -> float:
        """Accuracy on the task's samples among its own categories."""
        own, hits = self._of[task], 0
        for logits, labels, _ in _outputs(network, own, self._batch_size):
            hits += int((vote(logits, task) == labels).sum())
        return hits / len(own)

    def after_an_epoch(self, network: nn.Module) -> dict[str, float]:
        """The same for each task, by its number."""
        return {f"task_{number}": self.with_task(network, task) for number, task in enumerate(self._tasks)}

    def judge(self, model: SliceableModel, memory: IncrementMemory, progress: Progress) -> tuple[TaskAccuracy, ...]:
        """All that is measured of each task."""
        decide = None if memory.discriminant is None else TaskFree(model, memory)
        accuracies = []
        for number, learned in enumerate(memory.tasks):
            progress.report("evaluate", number, len(memory.tasks))
            accuracies.append(self._judge(model, learned, decide))
        return tuple(accuracies)

    def _judge(self, model: SliceableModel, learned: Learned, decide: TaskFree | None) -> TaskAccuracy:
        task, own = learned.task, self._of[learned.task]
        known = voted = free = 0
        for logits, labels, inputs in _outputs(model.graph_module, own, self._batch_size):
            known += int((vote(logits, task) == labels).sum())
            voted += int((logits.argmax(1) == labels).sum())
            if decide is not None:
                free += int((decide.decide(inputs, logits) == labels).sum())
        through = None
        if learned.kept is not None:
            silenced = silence(cut_of(model, learned.kept), copy_graph(model.graph_module, "shared"))
            through = self.with_task(silenced, task)
        return TaskAccuracy(
            task.first,
            task.categories,
            self.before.get(task),
            known / len(own),
            voted / len(own),
            None if decide is None else free / len(own),
            through,
        )


def forgetting(memory: IncrementMemory, accuracies: Sequence[TaskAccuracy]) -> float | None:
    """Mean over the earlier tasks of what each lost since it was learned, the task being known."""
    pairs = list(zip(memory.tasks[:-1], accuracies[:-1], strict=bool(accuracies)))
    lost = [learned.accuracy - now.with_task for learned, now in pairs if learned.accuracy is not None]
    return fmean(lost) if pairs and len(lost) == len(pairs) else None


def outputs_on(
    network: nn.Module, samples: Samples, categories: int, batch_size: int
) -> Float[Tensor, "samples categories"]:
    """The first outputs of a network on the first samples, to compare with those of another."""
    few = Subset(samples, torch.arange(min(len(samples), DRIFT_SAMPLES)))
    return torch.cat([logits[:, :categories] for logits, _, _ in _outputs(network, few, batch_size)])


def _outputs(network: nn.Module, samples: Samples, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits, labels and inputs of each batch; logits and labels on the CPU."""
    like = next(network.parameters())
    with evaluating(network), torch.no_grad():
        for inputs, labels in batches_of(samples, batch_size):
            moved = inputs.to(like.device, like.dtype)
            yield logits_of(network, moved).cpu(), labels, moved
