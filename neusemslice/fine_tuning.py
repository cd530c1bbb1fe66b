"""Training a produced network a little, so that it gets its accuracy back."""

from dataclasses import dataclass
from pathlib import Path

from torch import fx, nn

from neusemslice.batches import Batches
from neusemslice.checkpoint import save_checkpoint
from neusemslice.copying import copy_graph
from neusemslice.produced import Produced, as_model, as_teacher
from neusemslice.progress import OnProgress, ShouldStop
from neusemslice.pruning.weights import not_zeroed
from neusemslice.tracing import SliceableModel
from neusemslice.training import Training, as_samples, cross_entropy, distillation, train
from neusemslice.training_config import TrainingConfig


@dataclass(frozen=True, eq=False)
class FineTuned:
    """The trained network, in eval mode, and the training's record."""

    model: fx.GraphModule
    input_shape: tuple[int, ...]
    training: Training

    def save(self, path: str | Path) -> None:
        """Write a checkpoint that `load_checkpoint` reads without the original class."""
        save_checkpoint(self.model, self.input_shape, path, {"fine_tuning": self.training.to_dict()})


def fine_tune(
    network: SliceableModel | Produced,
    data: Batches,
    config: TrainingConfig,
    *,
    teacher: nn.Module | SliceableModel | None = None,
    validation: Batches | None = None,
    checkpoint: Path | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> FineTuned:
    """Train all parameters of a copy, but for weights that are zero, which stay zero: a pruned network stays pruned.

    Args:
        network: a model, or the result of `restructure`, `prune_weights` or `fine_tune`.
        data: labelled batches (inputs, labels).
        teacher: the original network, whose logits are imitated besides (Hinton et al., arXiv 1503.02531); on the
            network's device. None: the labels alone.
        validation: re-iterable batches; evaluated after each epoch, and needed for `config.patience`.
        checkpoint: a file, written after each epoch; an interrupted training goes on from it.

    Raises:
        ConfigError: the teacher has other outputs, or `patience` lacks validation data.
        DatasetError: the data does not fit the model, or its labels are no categories.
        DivergedError: the loss or a weight became NaN or infinite; `error.network` is as after the last good epoch.
        StoppedError: should_stop() returned true.
    """
    model = as_model(network)
    tuned = copy_graph(model.graph_module)
    training = train(
        tuned,
        as_samples(data, model),
        config,
        loss=cross_entropy if teacher is None else distillation(as_teacher(teacher, model)),
        trainable=not_zeroed(tuned),
        validation=validation,
        checkpoint=checkpoint,
        stage="fine-tune",
        on_progress=on_progress,
        should_stop=should_stop,
    )
    return FineTuned(tuned.requires_grad_(requires_grad=True), model.input_shape, training)
