"""When a pruning ends, and what cannot be reached at all."""

from collections.abc import Sequence

from neusemslice.errors import TargetError
from neusemslice.pruning.methods import most_zeroed
from neusemslice.pruning.results import StopReason
from neusemslice.pruning.weights import PrunableWeight
from neusemslice.pruning_config import PruningConfig


def next_amount(config: PruningConfig, weights: Sequence[PrunableWeight], done: int) -> float | StopReason:
    """The share of the surviving weights that the next iteration zeroes, or why there is none.

    A sparsity counts as reached when it is missed by no more than a weight for each layer: methods round in each.
    """
    if config.iterations is not None and done >= config.iterations:
        return "iterations"
    unmasked = sum(weight.unmasked for weight in weights)
    amount = config.amount
    if config.sparsity is not None:
        total = sum(weight.total for weight in weights)
        missing = round(config.sparsity * total) - (total - unmasked)
        if missing <= (0 if done == 0 else len(weights)):
            return "sparsity"
        amount = min(amount, missing / unmasked)
    gone = round(amount * unmasked)
    return amount if 0 < gone <= most_zeroed(config.method, weights) else "exhausted"


def check_reachable(config: PruningConfig, weights: Sequence[PrunableWeight]) -> None:
    """Raises TargetError if the method cannot zero as many weights as the stop asks for."""
    unmasked = sum(weight.unmasked for weight in weights)
    total = sum(weight.total for weight in weights)
    if config.sparsity is not None:
        asked, what = round(config.sparsity * total) - (total - unmasked), f"sparsity={config.sparsity}"
    elif config.iterations is not None:
        left = unmasked
        for _ in range(config.iterations):
            left -= round(config.amount * left)
        asked, what = unmasked - left, f"iterations={config.iterations}"
    else:
        return
    possible = most_zeroed(config.method, weights)
    if asked > possible:
        most = (total - unmasked + possible) / total
        raise TargetError(
            f"{what} means to zero {asked:,} more of the weights, and {config.method} can zero {possible:,}: "
            f"it spares the first convolution and a fifth of the last layer, and reaches a sparsity of {most:.2%}.",
            hint="Ask for less, or choose another method.",
        )
