"""Clean samples beside the ones that the network is to get right besides: attacked, or new."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neusemslice.errors import DatasetError
from neusemslice.training import Batch, Samples, Subset, logits_of


@dataclass(frozen=True, eq=False)
class Pairs:
    """Each clean sample with a counterpart of the same number. The shorter lot begins again until the other one ends.

    Attributes:
        clean: repeated where there are fewer of them.
        counterparts: repeated where there are fewer of them.
    """

    clean: Samples
    counterparts: Samples

    @classmethod
    def of(cls, clean: Samples, counterparts: Samples) -> "Pairs":
        """Pair two lots of samples, one each at least."""
        count = max(len(clean), len(counterparts))
        rows = torch.arange(count)
        return cls(Subset(clean, rows % len(clean)), Subset(counterparts, rows % len(counterparts)))

    def loss(self, network: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """CE(M(x), y) + CE(M(x'), y') of a step's clean samples x and their counterparts x' (formula 8).

        Both pass through the network together, so that batch norms see one batch of both.
        """
        changed = self.counterparts.take(batch.rows).to(batch.inputs)
        labels = self.counterparts.labels[batch.rows].to(batch.labels.device)
        clean, disturbed = logits_of(network, torch.cat([batch.inputs, changed])).chunk(2)
        return cross_entropy(clean, batch.labels) + cross_entropy(disturbed, labels)


def held_out(samples: Samples, share: float, what: str) -> tuple[Samples, Samples]:
    """All but the last samples, and the last ones: that share of all, rounded up.

    Raises:
        DatasetError: nothing would be left; `what` says what was to be split.
    """
    held = math.ceil(share * len(samples))
    if held >= len(samples):
        raise DatasetError(
            f"Of {len(samples)} {what} samples, {held} would be held out for validation.",
            hint="Give more samples, hold out a smaller share, or leave patience out.",
        )
    rows = torch.arange(len(samples))
    return Subset(samples, rows[:-held]), Subset(samples, rows[-held:])
