"""What a training reports: a record for each epoch."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: mean loss over its samples, time in seconds, and what was measured after it."""

    epoch: int
    loss: float
    seconds: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    measured: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """What a training did.

    Attributes:
        curve: a record for each epoch, from 1.
        best_epoch: the one whose weights the network has now: the last, or with `patience` that of the lowest
            validation loss.
        seconds: of all epochs, also of those before an interruption.
    """

    curve: tuple[EpochRecord, ...]
    best_epoch: int

    @property
    def seconds(self) -> float:
        """Wall time of all epochs, without evaluations."""
        return sum(record.seconds for record in self.curve)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "curve": [asdict(record) for record in self.curve],
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
        }
