"""The scores of all neurons for all categories."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jaxtyping import Float64, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Contributions(Mapping[str, Float64[Tensor, "categories _"]]):
    """Layer name -> contribution of each neuron to each category, on the CPU.

    Attributes:
        metric: what was measured.
        counts: samples of each category; in a regression every output has all of them.
        overall: layer name -> the same metric over all samples as one category.
    """

    metric: str
    counts: Int64[Tensor, " categories"]
    overall: Mapping[str, Float64[Tensor, " _"]]
    _by_category: Mapping[str, Float64[Tensor, "categories _"]]

    def __getitem__(self, layer: str) -> Float64[Tensor, "categories neurons"]:
        return self._by_category[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_category)

    def __len__(self) -> int:
        return len(self._by_category)
