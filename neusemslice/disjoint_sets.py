"""Labels that are merged into groups."""

import torch
from jaxtyping import Int64
from torch import Tensor


class DisjointSets:
    """Labels and the groups they belong to; a group is called by its smallest label."""

    def __init__(self) -> None:
        self._parents = [0]

    def add(self, count: int) -> Tensor:
        """So many labels more, each a group of its own."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def couple(self, pairs: Int64[Tensor, "2 pairs"]) -> None:
        """Merge the groups of each pair."""
        for one, other in pairs.T.tolist():
            low, high = sorted((self._root(one), self._root(other)))
            self._parents[high] = low

    def roots(self) -> Int64[Tensor, " labels"]:
        """The group of every label."""
        return torch.tensor([self._root(label) for label in range(len(self._parents))])

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label
