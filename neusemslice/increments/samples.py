"""Samples by task and by category, and those of earlier tasks that are kept to be trained on again."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from neusemslice.increments.heads import Task
from neusemslice.training import InMemory, Samples, Subset


class Relabelled:
    """Samples of one task, with its categories numbered from 0."""

    def __init__(self, samples: Samples, task: Task) -> None:
        self._samples = samples
        self.labels: Int64[Tensor, " samples"] = samples.labels - task.first

    def take(self, rows: Int64[Tensor, " rows"]) -> Float[Tensor, "rows ..."]:
        """See Samples."""
        return self._samples.take(rows)

    def __len__(self) -> int:
        return len(self.labels)


def of_task(samples: Samples, task: Task) -> Samples:
    """Those of the task's categories."""
    own = (samples.labels >= task.first) & (samples.labels < task.first + task.categories)
    return samples if bool(own.all()) else Subset(samples, own.nonzero()[:, 0])


def first_of_each(samples: Samples, limit: int) -> Samples:
    """The first `limit` samples of each category, in order."""
    labels = samples.labels
    rows = [(labels == label).nonzero()[:limit, 0] for label in labels.unique()]
    return Subset(samples, torch.cat(rows).sort().values)


def choose_exemplars(samples: Samples, fraction: float, seed: int) -> InMemory:
    """A random share of each category's samples, rounded up."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for label in samples.labels.unique().tolist():
        own = (samples.labels == label).nonzero()[:, 0]
        count = math.ceil(fraction * len(own) - 1e-9)
        rows.append(own[torch.randperm(len(own), generator=generator)[:count]])
    chosen = torch.cat(rows).sort().values
    return InMemory(samples.take(chosen).cpu(), samples.labels[chosen])


def both(one: InMemory | None, other: InMemory) -> InMemory:
    """The samples of the two together."""
    if one is None:
        return other
    return InMemory(torch.cat([one.inputs, other.inputs]), torch.cat([one.labels, other.labels]))
