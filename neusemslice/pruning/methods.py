"""Which weights one iteration zeroes: the four methods, each as its authors' code has it.

Every method zeroes the weights of smallest magnitude; they differ in how many they take from which layer. `amount` is
the share of all weights that are not zero yet. Weights that are zero already stay zero.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from neusemslice.pruning.weights import PrunableWeight
from neusemslice.pruning_config import PruningMethod

LAST_LAYER_FLOOR = 0.2
"""Uniform+ leaves at least this share of all the last layer's weights (Gale et al. 2019)."""

Survivors = list[Bool[Tensor, "..."]]
"""For each weight tensor, True for the entries that stay."""


def choose_survivors(method: PruningMethod, weights: Sequence[PrunableWeight], amount: float) -> Survivors:
    """The weights that are left when a share `amount` of the surviving ones is zeroed.

    Args:
        weights: in forward order, each with at least one survivor among them.
        amount: in (0, 1], at most what `most_zeroed` allows.
    """
    match method:
        case "global":
            return _by_magnitude(weights, amount)
        case "lamp":
            left = lamp_survivors(weights, amount)
        case "uniform+":
            left = uniform_plus_survivors(weights, amount)
        case "erk":
            left = erk_survivors(weights, amount)
    return [
        _without_smallest(weight.tensor, weight.unmasked - count) for weight, count in zip(weights, left, strict=True)
    ]


def most_zeroed(method: PruningMethod, weights: Sequence[PrunableWeight]) -> int:
    """How many more weights the method could zero at all: Uniform+ spares the first and the last layer."""
    unmasked = [weight.unmasked for weight in weights]
    if method != "uniform+":
        return sum(unmasked)
    *others, last = unmasked
    spared_first = others[:1] if weights[0].convolution else []
    if len(weights) == 1 and weights[0].convolution:
        return 0
    return sum(others) - sum(spared_first) + max(0, last - round(LAST_LAYER_FLOOR * weights[-1].total))


def lamp_scores(weight: Float[Tensor, "..."]) -> Float64[Tensor, " unmasked"]:
    """LAMP's scores of a layer's weights that are not zero, ascending, as their magnitudes do (Lee et al. 2021).

    The score of a weight is w_u^2 / sum of w_v^2 over all v that are not smaller than u; the largest weight's is
    exactly 1. The denominators are summed from the largest weight down, in float64: subtracting a running sum from the
    total in float32 puts the largest of 16 million weights at 0.976 instead, and shifts layers against each other.
    """
    magnitudes = weight.detach().abs().flatten()
    squares = _ascending(magnitudes[magnitudes > 0]).double().square_()
    not_smaller = squares.flip(0).cumsum(0).flip(0)
    return squares / not_smaller


def uniform_plus_survivors(weights: Sequence[PrunableWeight], amount: float) -> list[int]:
    """How many weights Uniform+ leaves in each layer (Gale et al. 2019): the same share everywhere, but for two.

    A first layer that is a convolution stays as it is. If the last layer would be left with less than a fifth of all
    its weights, it keeps that fifth. What they are spared is spread over the others.
    """
    unmasked = [weight.unmasked for weight in weights]
    total = round(amount * sum(unmasked))
    first = 1 if weights[0].convolution else 0
    share = total / sum(unmasked[first:])
    floor = round(LAST_LAYER_FLOOR * weights[-1].total)
    if round((1 - share) * unmasked[-1]) >= floor:
        return [*unmasked[:first], *(count - round(share * count) for count in unmasked[first:])]
    last, between = min(floor, unmasked[-1]), unmasked[first:-1]
    share = (total - unmasked[-1] + last) / max(sum(between), 1)
    return [*unmasked[:first], *(count - round(share * count) for count in between), last]


def erk_survivors(weights: Sequence[PrunableWeight], amount: float) -> list[int]:
    """How many weights ERK leaves in each layer (Evci et al. 2020).

    The survivors are shared out in proportion to outputs + inputs + sides of the kernel. A layer that would get more
    than it has keeps all of them, worst first, and the rest is shared out anew among the others.
    """
    unmasked = [weight.unmasked for weight in weights]
    sides = [sum(weight.tensor.shape) for weight in weights]
    to_survive = (1 - amount) * sum(unmasked)
    dense: set[int] = set()
    while True:
        sparse = [place for place in range(len(weights)) if place not in dense]
        left = to_survive - sum(unmasked[place] for place in dense)
        total = sum(sides[place] for place in sparse)
        targets = {place: round(left * sides[place] / total) for place in sparse}
        too_many = [place for place in sparse if targets[place] > unmasked[place]]
        if not too_many:
            return [targets.get(place, count) for place, count in enumerate(unmasked)]
        dense.add(max(too_many, key=lambda place: targets[place] / max(unmasked[place], 1e-9)))


def lamp_survivors(weights: Sequence[PrunableWeight], amount: float) -> list[int]:
    """How many weights LAMP leaves in each layer: those that score at least as much as the last one that should stay.

    So ties stay, and no layer is emptied.
    """
    scores = [lamp_scores(weight.tensor).to(weights[0].tensor.device) for weight in weights]
    together = torch.cat(scores)
    survivors = round(len(together) * (1 - amount))
    if survivors == 0:
        return [0] * len(weights)
    threshold = together.kthvalue(len(together) - survivors + 1).values
    return [int((score >= threshold).sum()) for score in scores]


def _ascending(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Sorted; on the CPU by numpy, which needs a fifth of torch's time."""
    if values.device.type != "cpu":
        return values.sort().values
    return torch.from_numpy(np.sort(values.to(torch.promote_types(values.dtype, torch.float32)).numpy()))


def _by_magnitude(weights: Sequence[PrunableWeight], amount: float) -> Survivors:
    """All layers as one; between equals, earlier ones go first."""
    together = torch.cat([weight.tensor.detach().flatten().to(weights[0].tensor.device) for weight in weights])
    kept = _without_smallest(together, round(amount * sum(weight.unmasked for weight in weights)))
    parts = kept.split([weight.total for weight in weights])
    return [
        part.view(weight.tensor.shape).to(weight.tensor.device) for part, weight in zip(parts, weights, strict=True)
    ]


def _without_smallest(weight: Float[Tensor, "..."], count: int) -> Bool[Tensor, "..."]:
    """False for zeros and for the `count` smallest others; between equals, earlier ones go first."""
    magnitude = weight.detach().abs().flatten()
    survives = magnitude > 0
    if count > 0:
        zeros = len(magnitude) - int(survives.sum())
        threshold = magnitude.kthvalue(zeros + count).values
        equal = survives & (magnitude == threshold)
        below = int((magnitude < threshold).sum()) - zeros
        survives &= magnitude >= threshold
        survives[equal.nonzero()[: count - below, 0]] = False
    return survives.view(weight.shape)
