"""What a re-adaptation changed, and the network that it leaves."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import fx

from neusemslice.checkpoint import save_checkpoint
from neusemslice.readaptation.judging import Accuracies
from neusemslice.readaptation_config import ReadaptConfig
from neusemslice.training import Training


@dataclass(frozen=True, kw_only=True)
class ReadaptReport:
    """The paper's figures (section 5.4), and what they leave out.

    Attributes:
        config: with the cuts in force.
        parameters, trained_parameters: all of the network, and those that were free to change.
        samples, counterparts: how many clean, and how many attacked or new samples were trained on, without those held
            out for early stopping.
        accuracies: before and after, clean and attacked.
        training: the curve, with `retrained_accuracy` and `clean_accuracy` (on the other samples) after each epoch,
            and the time of the epochs alone.
        seconds: of everything: attacks, slicing, training and evaluation.
    """

    config: ReadaptConfig
    parameters: int
    trained_parameters: int
    samples: int
    counterparts: int
    accuracies: Accuracies
    training: Training
    seconds: float

    @property
    def training_parameter_ratio(self) -> float:
        """Share of the parameters that were free to change (TPR)."""
        return self.trained_parameters / self.parameters

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {
            "config": self.config.to_dict(),
            "training": self.training.to_dict(),
            "training_parameter_ratio": self.training_parameter_ratio,
        }


@dataclass(frozen=True, eq=False)
class Readapted:
    """The repaired network, in eval mode and trainable, and what was done."""

    model: fx.GraphModule
    input_shape: tuple[int, ...]
    report: ReadaptReport

    def save(self, path: str | Path) -> None:
        """Write a checkpoint that `load_checkpoint` reads without the original class."""
        save_checkpoint(self.model, self.input_shape, path, {"readapt": self.report.to_dict()})
