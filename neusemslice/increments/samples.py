"""Samples by task and by category, and those of earlier tasks that are kept to be trained on again."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from neusemslice.batches import Batches
from neusemslice.increments.heads import Task
from neusemslice.tracing import SliceableModel
from neusemslice.training import InMemory, Joined, Samples, Subset, as_samples


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


@dataclass(frozen=True, eq=False)
class Together:
    """Re-iterable batches of several datasets, one after the other; samples on disk stay there."""

    parts: Sequence[Batches]

    def __iter__(self) -> Iterator[Any]:
        for part in self.parts:
            yield from part


def samples_of(data: Batches, model: SliceableModel) -> Samples:
    """As `as_samples`, part by part where there are several.

    Raises:
        DatasetError: see `as_samples`.
    """
    if isinstance(data, Together):
        return Joined([as_samples(part, model) for part in data.parts])
    return as_samples(data, model)


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
