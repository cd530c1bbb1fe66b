"""What a restructure job does after the cut: fine-tuning, then weight pruning."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx

from app.jobs.specs import RestructureSpec
from neusemslice import SliceableModel, fine_tune, prune_weights
from neusemslice.batches import Batches
from neusemslice.data import Dataset
from neusemslice.produced import Produced
from neusemslice.profiling import count_parameters
from neusemslice.restructuring import Restructured
from worker.analysis import VALIDATION_SHARE
from worker.assignment import Assignment
from worker.facts import evaluation_split
from worker.producing import leaving_last_good

FINE_TUNING = "fine-tuning.safetensors"
_BLOCK = 2**20


@dataclass(frozen=True, eq=False)
class Finished:
    """The network in the end, what its checkpoint tells of it, and what the job's result does."""

    model: fx.GraphModule
    about: dict[str, Any]
    result: dict[str, Any]


def finishing_stages(spec: RestructureSpec) -> tuple[str, ...]:
    """Those that the spec asks for."""
    return (*(("fine-tune",) if spec.fine_tuning else ()), *(("prune",) if spec.pruning else ()))


def finish(
    assignment: Assignment[RestructureSpec], model: SliceableModel, smaller: Restructured, dataset: Dataset | None
) -> Finished:
    """Fine-tune and prune as the spec says; `model` is the original network.

    Raises:
        DivergedError: the network after the last good epoch is handed on as `last_good.safetensors`.
    """
    about = {"restructure": smaller.report.to_dict()}
    with leaving_last_good(assignment, model, about):
        return _finish(assignment, model, smaller, dataset, about)


def _finish(
    assignment: Assignment[RestructureSpec],
    model: SliceableModel,
    smaller: Restructured,
    dataset: Dataset | None,
    about: dict[str, Any],
) -> Finished:
    spec, network = assignment.spec, smaller.model
    result: dict[str, Any] = {"fine_tuning": None, "pruning": None}
    train, validation = _parts(spec, dataset)
    produced: Produced = smaller
    if spec.fine_tuning is not None:
        assert train is not None  # noqa: S101 the spec's own check
        tuned = fine_tune(
            smaller,
            train,
            spec.fine_tuning.to_config(seed=spec.seed),
            teacher=model if spec.fine_tuning.distill else None,
            validation=validation,
            checkpoint=assignment.checkpoints / FINE_TUNING,
            on_progress=assignment.on_progress,
            should_stop=assignment.should_stop,
        )
        produced, network = tuned, tuned.model
        result["fine_tuning"] = tuned.training.to_dict()
        about["fine_tuning"] = {"epochs": len(tuned.training.curve), "best_epoch": tuned.training.best_epoch}
    if spec.pruning is not None:
        config = spec.pruning.to_config(seed=spec.seed)
        pruned = prune_weights(
            produced,
            config,
            train=train,
            validation=validation,
            test=None if dataset is None else dataset.batches(evaluation_split(dataset), spec.batch_size),
            teacher=model if config.distill else None,
            parameters_original=count_parameters(model.graph_module),
            checkpoints=assignment.checkpoints,
            on_progress=assignment.on_progress,
            should_stop=assignment.should_stop,
        )
        network = pruned.model
        result["pruning"] = pruned.report.to_dict()
        about["pruning"] = pruned.report.summary()
    return Finished(network, about, result)


def _parts(spec: RestructureSpec, dataset: Dataset | None) -> tuple[Batches | None, Batches | None]:
    """What is trained on, and what is held out of it where something is measured on that."""
    if dataset is None:
        return None, None
    trainings = [spec.fine_tuning, None if spec.pruning is None else spec.pruning.fine_tuning]
    patient = any(training is not None and training.patience is not None for training in trainings)
    if patient or (spec.pruning is not None and spec.pruning.max_accuracy_drop is not None):
        return dataset.hold_out(VALIDATION_SHARE, spec.batch_size, seed=spec.seed)
    return dataset.batches("train", spec.batch_size), None


def compressed_bytes(path: Path) -> int:
    """What gzip's method makes of a file: what sending or storing it takes. In memory it is as large as ever."""
    packer, size = zlib.compressobj(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size += len(packer.compress(block))
    return size + len(packer.flush())
