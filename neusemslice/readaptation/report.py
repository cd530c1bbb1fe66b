"""What a re-adaptation changed, and the network that it leaves."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import fx

from neusemslice.checkpoint import save_checkpoint
from neusemslice.readaptation_config import ReadaptConfig
from neusemslice.training import Training


@dataclass(frozen=True)
class ReadaptReport:
    """The paper's figures (section 5.4) and what they leave out. Accuracies that there are no samples for are None.

    Attributes:
        config: with the cuts in force.
        parameters, trained_parameters: all of the network, and those that were free to change.
        training_parameter_ratio: their share (TPR).
        samples: clean samples and counterparts trained on; those held out are not among them.
        counterparts: attacked or new samples trained on.
        original_accuracy: of the original network on the counterparts.
        retrained_accuracy: of the repaired one on the same counterparts (RA).
        original_transfer_accuracy, transfer_accuracy: of both on other samples, attacked through the original.
        reattack_accuracy: of the repaired network on those other samples, attacked afresh through itself (RAA).
        clean_accuracy_before, clean_accuracy_after: on the test data, or the data that was not drawn.
        test_samples, attacked_test_samples: how many the clean and the attacked accuracies are of.
        training: the curve, with `retrained_accuracy` and `clean_accuracy` after each epoch (the latter on the other
            samples), and the time of the epochs alone.
        seconds: of everything: slicing, attacks, training and evaluation.
    """

    config: ReadaptConfig
    parameters: int
    trained_parameters: int
    training_parameter_ratio: float
    samples: int
    counterparts: int
    original_accuracy: float
    retrained_accuracy: float
    original_transfer_accuracy: float | None
    transfer_accuracy: float | None
    reattack_accuracy: float | None
    clean_accuracy_before: float | None
    clean_accuracy_after: float | None
    test_samples: int
    attacked_test_samples: int
    training: Training
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"config": self.config.to_dict(), "training": self.training.to_dict()}


@dataclass(frozen=True, eq=False)
class Readapted:
    """The repaired network, in eval mode and trainable, and what was done."""

    model: fx.GraphModule
    input_shape: tuple[int, ...]
    report: ReadaptReport

    def save(self, path: str | Path) -> None:
        """Write a checkpoint that `load_checkpoint` reads without the original class."""
        save_checkpoint(self.model, self.input_shape, path, {"readapt": self.report.to_dict()})
