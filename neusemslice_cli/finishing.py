"""What `neusemslice restructure` does after the cut: fine-tuning, then weight pruning."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from neusemslice.errors import ConfigError
from neusemslice.progress import OnProgress
from neusemslice.pruning_config import PruningConfig
from neusemslice.training_config import TrainingConfig

if TYPE_CHECKING:
    from neusemslice import SliceableModel
    from neusemslice.data import Dataset
    from neusemslice.fine_tuning import FineTuned
    from neusemslice.pruning import Pruned
    from neusemslice.restructuring import Restructured

VALIDATION_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Finishing:
    """Which of them, and how."""

    fine_tuning: TrainingConfig | None
    pruning: PruningConfig | None
    distill: bool
    seed: int

    @classmethod
    def of(
        cls,
        *,
        fine_tune_epochs: int | None,
        method: str | None,
        epochs_between: int | None,
        learning_rate: float,
        distill: bool,
        seed: int,
        **pruning: Any,
    ) -> "Finishing":
        """From the command line's options.

        Raises:
            ConfigError: they contradict each other, or one has no effect.
        """

        def training(epochs: int | None) -> TrainingConfig | None:
            return None if epochs is None else TrainingConfig(epochs=epochs, learning_rate=learning_rate, seed=seed)

        stops = {field: value for field, value in pruning.items() if field != "amount" and value is not None}
        if method is None and (stops or epochs_between is not None):
            raise ConfigError(
                "There are options of pruning, and no --prune.", field="prune", hint="Name a method, such as lamp."
            )
        if distill and fine_tune_epochs is None and epochs_between is None:
            raise ConfigError(
                "--distill is about training, and there is none.", field="distill", hint="Give --fine-tune-epochs."
            )
        config = None
        if method is not None:
            between = training(epochs_between)
            values = between and between.to_dict()
            config = PruningConfig.from_dict(
                {"method": method, **pruning, "fine_tuning": values, "distill": distill and between is not None}
            )
        return cls(fine_tuning=training(fine_tune_epochs), pruning=config, distill=distill, seed=seed)

    @property
    def _holds_out(self) -> bool:
        return self.pruning is not None and self.pruning.max_accuracy_drop is not None

    def check_data(self, *, given: bool) -> None:
        """Raises ConfigError if there is something to train or measure on to be given, and it is not."""
        trains = self.fine_tuning is not None or (self.pruning is not None and self.pruning.fine_tuning is not None)
        if not given and (trains or self._holds_out):
            raise ConfigError("Training and measuring need --data.", field="data", hint="Give the dataset.")

    def finish(
        self,
        model: "SliceableModel",
        smaller: "Restructured",
        dataset: "Dataset | None",
        batch_size: int,
        on_progress: OnProgress,
    ) -> "Restructured | FineTuned | Pruned":
        """Do it, and print a line for each iteration; `model` is the original network."""
        from neusemslice import fine_tune, prune_weights
        from neusemslice.profiling import count_parameters

        train = validation = test = None
        if dataset is not None:
            train = dataset.batches("train", batch_size)
            test = dataset.batches("test", batch_size) if "test" in dataset.splits else None
            if self._holds_out:
                train, validation = dataset.hold_out(VALIDATION_SHARE, batch_size, seed=self.seed)
        result: Restructured | FineTuned | Pruned = smaller
        if self.fine_tuning is not None:
            assert train is not None  # noqa: S101 check_data
            teacher = model if self.distill else None
            result = fine_tune(result, train, self.fine_tuning, teacher=teacher, on_progress=on_progress)
        if self.pruning is None:
            return result
        pruned = prune_weights(
            result,
            self.pruning,
            train=train,
            validation=validation,
            test=test,
            teacher=model if self.pruning.distill else None,
            parameters_original=count_parameters(model.graph_module),
            on_progress=on_progress,
        )
        for record in pruned.report.iterations:
            accuracy = "" if record.accuracy is None else f", accuracy {record.accuracy:.2%}"
            chosen = " <- result" if record.iteration == pruned.report.result else ""
            typer.echo(
                f"iteration {record.iteration}: {record.compression_rate:.2%} of the parameters removed or zero"
                f"{accuracy}{chosen}"
            )
        return pruned
