"""The samples that a reconstruction looks at."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from neusemslice.errors import DatasetError
from neusemslice.tracing import SliceableModel

FEWEST = 4


@dataclass(frozen=True)
class Calibration:
    """Samples on the model's device, and how many there were to choose from."""

    inputs: Float[Tensor, "samples ..."]
    given: int


def gather(model: SliceableModel, batches: Iterable[Any], most: int) -> Calibration:
    """At most `most` samples, evenly spread over the data, whatever the size of the batches. No more than twice as many
    are held.

    Raises:
        DatasetError: there are fewer than four samples, they do not fit the model, or are not finite.
    """
    kept: list[Tensor] = []
    stride, given = 1, 0
    for number, batch in enumerate(batches):
        for sample in _inputs_of(model, batch, number):
            if given % stride == 0:
                kept.append(sample.clone())
                if len(kept) > 2 * most:
                    kept, stride = kept[::2], 2 * stride
            given += 1
    if min(len(kept), most) < FEWEST:
        raise DatasetError(
            f"{min(len(kept), most)} calibration samples are too few to reconstruct from.",
            hint=f"Give at least {FEWEST}, better hundreds.",
        )
    kept = kept if len(kept) <= most else [kept[place * len(kept) // most] for place in range(most)]
    return Calibration(torch.stack(kept).to(model.device, model.dtype), given)


def _inputs_of(model: SliceableModel, batch: Any, number: int) -> Tensor:
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(inputs, Tensor) or tuple(inputs.shape[1:]) != model.input_shape:
        shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise DatasetError(
            f"Calibration batch {number} is {shape}; the model takes samples of {model.input_shape}.",
            hint="Give inputs as [batch, *input shape], or pairs of them and labels.",
        )
    if not bool(torch.isfinite(inputs).all()):
        raise DatasetError(
            f"Calibration batch {number} holds NaN or infinity.", hint="Check the values and their normalisation."
        )
    return inputs
