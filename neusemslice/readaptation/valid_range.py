"""Which values a network's inputs can have: what an attack may reach, and the unit of its strength."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neusemslice.data.preprocess import Preprocess
from neusemslice.errors import ConfigError
from neusemslice.training import Samples

_ROWS = 1024
"""Samples read at once."""


@dataclass(frozen=True, eq=False)
class ValidRange:
    """Smallest and largest valid value of each channel (dimension 1 of a batch), as the network sees them.

    Raises:
        ConfigError: the two do not fit each other, are not finite, or low exceeds high.
    """

    low: Float[Tensor, " _"]
    high: Float[Tensor, " _"]

    def __post_init__(self) -> None:
        fits = self.low.ndim == 1 and self.low.shape == self.high.shape
        if not fits or not bool((torch.isfinite(self.low + self.high) & (self.low <= self.high)).all()):
            raise ConfigError(
                f"The valid range goes from {self.low.tolist()} to {self.high.tolist()}.",
                field="valid_range",
                hint="Give a finite lowest and highest value for each channel.",
            )

    @classmethod
    def of_stored(cls, value_range: Sequence[float], preprocess: Preprocess, channels: int) -> "ValidRange":
        """That of a dataset whose stored values (before scale, mean and deviation) go from the first to the second.

        Raises:
            ConfigError: the two numbers are no range, or the preprocessing is for another number of channels.
        """
        preprocess.check_channels(channels)
        if len(value_range) != 2 or not value_range[0] < value_range[1]:
            raise ConfigError(
                f"value_range={list(value_range)} is no range.",
                field="value_range",
                hint="Give the lowest and the highest stored value, such as [0, 255].",
            )
        mean = torch.tensor(preprocess.mean or (0.0,), dtype=torch.float64)
        std = torch.tensor(preprocess.std or (1.0,), dtype=torch.float64)
        low, high = (
            ((value * preprocess.scale - mean) / std).expand(channels).to(torch.float32) for value in value_range
        )
        return cls(low, high)

    @classmethod
    def seen_in(cls, samples: Samples) -> "ValidRange":
        """From the smallest to the largest value that each channel has in any of the samples."""
        lows, highs = [], []
        for rows in torch.arange(len(samples)).split(_ROWS):
            by_channel = samples.take(rows).movedim(1, 0).flatten(1)
            lows.append(by_channel.amin(1))
            highs.append(by_channel.amax(1))
        return cls(torch.stack(lows).amin(0), torch.stack(highs).amax(0))

    def check_channels(self, input_shape: tuple[int, ...]) -> None:
        """Raises ConfigError unless samples of that shape have as many channels."""
        if len(self.low) != input_shape[0]:
            raise ConfigError(
                f"The valid range is one of {len(self.low)} channels; the model takes samples of {list(input_shape)}.",
                field="valid_range",
                hint="Give a lowest and a highest value for each channel.",
            )
