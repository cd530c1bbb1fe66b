"""Batches from a canonical dataset, mapped from its file."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from neusemslice.data.canonical import read_canonical
from neusemslice.data.facts import DatasetFacts
from neusemslice.data.preprocess import Preprocess
from neusemslice.errors import ConfigError


@dataclass(frozen=True)
class Batches:
    """Batches of (inputs, labels) in file order; iterating again starts again."""

    inputs: NDArray[Any]
    labels: NDArray[Any]
    rows: NDArray[np.int64]
    batch_size: int
    preprocess: Preprocess

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Float32[Tensor, "batch ..."], Int64[Tensor, " batch"]]]:
        for first in range(0, len(self.rows), self.batch_size):
            rows = self.rows[first : first + self.batch_size]
            yield self.read(rows), torch.from_numpy(np.asarray(self.labels[rows]))

    def read(self, rows: NDArray[np.int64]) -> Float32[Tensor, "batch ..."]:
        """The inputs of these rows of the split, normalised."""
        return self._normalise(torch.from_numpy(np.asarray(self.inputs[rows])).to(torch.float32))

    def between(self, first: int, last: int) -> "Batches":
        """The batches numbered from `first` up to, but without, `last`: the very same ones."""
        return replace(self, rows=self.rows[first * self.batch_size : last * self.batch_size])

    def numbered(self, labels: Sequence[int], *, first: int = 0) -> "Batches":
        """Only the samples with these labels, which are numbered from `first` on, in the order they are given in.

        Raises:
            ConfigError: a label is named twice, or no sample has it.
        """
        number = np.full(max([int(self.labels.max()), *labels]) + 1, -1)
        number[list(labels)] = np.arange(first, first + len(labels))
        renumbered = number[self.labels]
        rows = self.rows[renumbered[self.rows] >= 0]
        missing = sorted(set(labels) - set(self.labels[rows].tolist()))
        if missing or len(set(labels)) < len(labels):
            reason = f"no sample has the labels {missing}" if missing else "a label is named twice"
            raise ConfigError(
                f"labels={list(labels)} cannot be chosen: {reason}.",
                field="labels",
                hint="Name labels of the data once.",
            )
        return replace(self, labels=renumbered, rows=rows)

    def _normalise(self, inputs: Float32[Tensor, "batch ..."]) -> Float32[Tensor, "batch ..."]:
        shape = [-1] + [1] * (inputs.ndim - 2)
        inputs *= self.preprocess.scale
        if self.preprocess.mean:
            inputs -= torch.tensor(self.preprocess.mean).reshape(shape)
        if self.preprocess.std:
            inputs /= torch.tensor(self.preprocess.std).reshape(shape)
        return inputs


@dataclass(frozen=True)
class Dataset:
    """A canonical dataset: its facts, and batches of its splits."""

    facts: DatasetFacts
    arrays: dict[str, NDArray[Any]]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: train, and test where there is one."""
        return tuple(self.facts.samples)

    def batches(self, split: str, batch_size: int, *, limit_per_category: int | None = None) -> Batches:
        """Re-iterable batches: inputs float32 [batch, *input_shape], normalised as the facts say; labels int64 [batch].

        Args:
            split: one of `splits`.
            batch_size: samples a batch; the last may have fewer.
            limit_per_category: only the first so many samples of each category.

        Raises:
            ConfigError: there is no such split, or a number is not positive.
        """
        if split not in self.splits:
            raise ConfigError(
                f"There is no split {split!r}.", field="split", hint=f"Use one of {', '.join(self.splits)}."
            )
        for field, value in (("batch_size", batch_size), ("limit_per_category", limit_per_category)):
            if value is not None and value < 1:
                raise ConfigError(f"{field}={value} is too small.", field=field, hint="Use at least 1.")
        labels = self.arrays[f"y_{split}"]
        rows = np.arange(len(labels)) if limit_per_category is None else _first_of_each(labels, limit_per_category)
        return Batches(self.arrays[f"x_{split}"], labels, rows, batch_size, self.facts.preprocess)

    def hold_out(
        self, share: float, batch_size: int, *, seed: int, limit_per_category: int | None = None
    ) -> tuple[Batches, Batches]:
        """The train split in two: what is left, and a random share of each category held out for validation.

        Args:
            share: of each category, in (0, 1); at least one sample of each category that has two.
            seed: draws the samples; the same seed gives the same parts.
            limit_per_category: of what is left only the first so many samples of each category.

        Raises:
            ConfigError: the share is out of range, or another number is not positive.
        """
        if not 0 < share < 1:
            raise ConfigError(f"share={share} is out of range.", field="share", hint="Use a share between 0 and 1.")
        whole = self.batches("train", batch_size, limit_per_category=limit_per_category)
        held = _share_of_each(whole.labels, share, seed)
        left = np.setdiff1d(np.arange(len(whole.labels)), held)
        if limit_per_category is not None:
            left = left[_first_of_each(whole.labels[left], limit_per_category)]
        return replace(whole, rows=left), replace(whole, rows=held)


def open_dataset(path: str | Path) -> Dataset:
    """Map a file that `import_dataset` wrote; nothing but the labels is read. The file must stay as it is.

    Raises:
        DatasetError: the file is no imported dataset.
        OSError: the file cannot be opened.
    """
    return Dataset(*read_canonical(Path(path)))


def _first_of_each(labels: NDArray[Any], limit: int) -> NDArray[np.int64]:
    """Rows of the first `limit` samples of each category, ascending."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    return np.sort(order[np.arange(len(order)) - starts < limit])


def _share_of_each(labels: NDArray[Any], share: float, seed: int) -> NDArray[np.int64]:
    """Random rows of each category, ascending: the share, rounded, and at least one, but never all."""
    draw = np.random.default_rng(seed)
    chosen = []
    for category in np.unique(labels):
        rows = np.flatnonzero(labels == category)
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        chosen.append(draw.permutation(rows)[:count])
    return np.sort(np.concatenate(chosen))
