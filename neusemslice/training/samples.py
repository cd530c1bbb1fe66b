"""Labelled samples that can be taken in any order: what a training draws its steps from."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from neusemslice.batches import Batches, check_batches
from neusemslice.data.dataset import Batches as DatasetBatches
from neusemslice.errors import DatasetError
from neusemslice.tracing import SliceableModel


@runtime_checkable
class Samples(Protocol):
    """Samples by number, from 0."""

    @property
    def labels(self) -> Int64[Tensor, " samples"]:
        """All labels, on the CPU."""

    def take(self, rows: Int64[Tensor, " rows"]) -> Float[Tensor, "rows ..."]:
        """The inputs of some samples."""

    def __len__(self) -> int:
        """How many there are."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """Samples held as two tensors."""

    inputs: Float[Tensor, "samples ..."]
    labels: Int64[Tensor, " samples"]

    def take(self, rows: Int64[Tensor, " rows"]) -> Float[Tensor, "rows ..."]:
        """See Samples."""
        return self.inputs[rows]

    def __len__(self) -> int:
        return len(self.labels)


class OnDisk:
    """The samples of a dataset's batches, which stay in their file."""

    def __init__(self, batches: DatasetBatches) -> None:
        self._batches = batches
        self.labels: Int64[Tensor, " samples"] = torch.from_numpy(batches.labels[batches.rows])

    def take(self, rows: Int64[Tensor, " rows"]) -> Float[Tensor, "rows ..."]:
        """See Samples."""
        return self._batches.read(self._batches.rows[rows.numpy()])

    def __len__(self) -> int:
        return len(self.labels)


class Joined:
    """Several lots of samples, numbered on from one to the next."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        self._parts = tuple(parts)
        self._starts = torch.tensor([len(part) for part in parts]).cumsum(0)
        self.labels: Int64[Tensor, " samples"] = torch.cat([part.labels for part in parts])

    def take(self, rows: Int64[Tensor, " rows"]) -> Float[Tensor, "rows ..."]:
        """See Samples."""
        part_of = torch.bucketize(rows, self._starts, right=True)
        places, taken = [], []
        for number, part in enumerate(self._parts):
            own = (part_of == number).nonzero()[:, 0]
            if len(own):
                places.append(own)
                taken.append(part.take(rows[own] - (self._starts[number] - len(part))))
        return torch.cat(taken)[torch.cat(places).argsort()]

    def __len__(self) -> int:
        return len(self.labels)


class Subset:
    """Some of the samples, in the order of `rows`."""

    def __init__(self, samples: Samples, rows: Int64[Tensor, " rows"]) -> None:
        self._samples, self._rows = samples, rows
        self.labels: Int64[Tensor, " samples"] = samples.labels[rows]

    def take(self, rows: Int64[Tensor, " rows"]) -> Float[Tensor, "rows ..."]:
        """See Samples."""
        return self._samples.take(self._rows[rows])

    def __len__(self) -> int:
        return len(self.labels)


def as_samples(data: Batches, model: SliceableModel) -> Samples:
    """The samples of batches (inputs, labels): those of a dataset stay on disk, others are held in memory.

    Raises:
        DatasetError: the data does not fit the model, has no sample, or its labels are not categories.
    """
    if isinstance(data, DatasetBatches):
        next(check_batches(data, model))
        samples: Samples = OnDisk(data)
        check_categories(samples.labels, model.categories)
        return samples
    pairs = [(inputs.cpu(), labels.cpu()) for inputs, labels in check_batches(data, model)]
    if pairs[0][1].is_floating_point():
        raise DatasetError(
            "The labels are targets of a regression.", hint="Give whole numbers, the categories of the samples."
        )
    return InMemory(torch.cat([inputs for inputs, _ in pairs]), torch.cat([labels for _, labels in pairs]))


def check_categories(labels: Int64[Tensor, " samples"], categories: int) -> None:
    """Raises DatasetError unless every label is one of so many categories."""
    if not 0 <= int(labels.min()) <= int(labels.max()) < categories:
        raise DatasetError(
            f"The labels go from {int(labels.min())} to {int(labels.max())}; "
            f"the model has categories 0 to {categories - 1}.",
            hint="Number the categories from 0, and use the model's own.",
        )


def batches_of(samples: Samples, batch_size: int) -> "SampleBatches":
    """The samples as re-iterable batches (inputs, labels), in order."""
    return SampleBatches(samples, batch_size)


@dataclass(frozen=True, eq=False)
class SampleBatches:
    """Re-iterable batches of samples."""

    samples: Samples
    batch_size: int

    def __len__(self) -> int:
        return math.ceil(len(self.samples) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "batch ..."], Int64[Tensor, " batch"]]]:
        for rows in torch.arange(len(self.samples)).split(self.batch_size):
            yield self.samples.take(rows), self.samples.labels[rows]
