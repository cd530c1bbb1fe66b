"""What a pruning gives back: the network, and a record of each iteration."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import fx

from neusemslice.checkpoint import save_checkpoint
from neusemslice.pruning_config import PruningConfig

StopReason = Literal["iterations", "sparsity", "max_accuracy_drop", "exhausted"]
"""Which stop ended it; `exhausted`: the method cannot zero another `amount`."""


@dataclass(frozen=True)
class PruningIteration:
    """The network after an iteration and its fine-tuning; number 0 is the start.

    Attributes:
        iteration: the paper's NI.
        compression_rate: the paper's CR: share of the original network's parameters that are removed or zero.
        weights_zeroed: weights that are zero.
        sparsity: their share of all weights of convolutions and linear layers.
        flops_without_zeros: of one sample, products with zeroed weights left out. Dense arithmetic does them all the
            same: this is what a sparse engine could reach at best.
        accuracy, loss: on the test data, the paper's MA; None without.
        validation_accuracy: what `max_accuracy_drop` is held against; None without.
        fine_tuning_s: time of the training.
    """

    iteration: int
    compression_rate: float
    weights_zeroed: int
    sparsity: float
    flops_without_zeros: int
    accuracy: float | None = None
    loss: float | None = None
    validation_accuracy: float | None = None
    fine_tuning_s: float = 0.0


@dataclass(frozen=True)
class PruningReport:
    """What a pruning did.

    Attributes:
        parameters_original: of the network that the compression rates are shares of.
        parameters_removed: how many of them are physically gone; pruning removes none.
        parameters: what is left, zeros included: the size of files and of memory.
        weights: how many of these pruning works on.
        flops: of one sample, as dense arithmetic does them.
        iterations: a record for each, from the start on; with `max_accuracy_drop` also of the one that fell too low.
        result: number of the iteration that the network is the result of.
        stopped_by: what ended it.
    """

    config: PruningConfig
    parameters_original: int
    parameters_removed: int
    parameters: int
    weights: int
    flops: int
    iterations: tuple[PruningIteration, ...]
    result: int
    stopped_by: StopReason

    @property
    def final(self) -> PruningIteration:
        """The record of the result."""
        return self.iterations[self.result]

    def summary(self) -> dict[str, Any]:
        """The report with the record of the result alone, as checkpoints carry it."""
        return self.to_dict() | {"iterations": [asdict(self.final)]}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"config": self.config.to_dict(), "iterations": [asdict(one) for one in self.iterations]}


@dataclass(frozen=True, eq=False)
class Pruned:
    """The network with zeros among its weights, in eval mode and trainable, and what was done."""

    model: fx.GraphModule
    input_shape: tuple[int, ...]
    report: PruningReport

    def save(self, path: str | Path) -> None:
        """Write a checkpoint that `load_checkpoint` reads without the original class."""
        save_checkpoint(self.model, self.input_shape, path, {"pruning": self.report.summary()})
