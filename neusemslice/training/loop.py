"""Training: epochs over samples, each ending in a record and, if asked, in a state that a later run goes on from."""

import hashlib
import math
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from neusemslice.batches import Batches
from neusemslice.errors import CheckpointError, ConfigError, DatasetError, DivergedError
from neusemslice.evaluation import evaluate
from neusemslice.lowering import probe_like
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.roles import NORMS
from neusemslice.training.freezing import Freeze, Trainable
from neusemslice.training.losses import Batch, Loss, cross_entropy
from neusemslice.training.record import EpochRecord, Training
from neusemslice.training.samples import Samples
from neusemslice.training.saved_state import (
    SavedState,
    optimizer_tensors,
    put_back,
    put_back_optimizer,
    tensors_of,
)
from neusemslice.training_config import TrainingConfig

Measure = Callable[[nn.Module], dict[str, float]]


def train(
    network: nn.Module,
    samples: Samples,
    config: TrainingConfig,
    *,
    loss: Loss = cross_entropy,
    trainable: Trainable | None = None,
    validation: Batches | None = None,
    measure: Measure | None = None,
    checkpoint: Path | None = None,
    stage: str = "train",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> Training:
    """Train a network in place and leave it in eval mode.

    The result depends on the samples, the config and the network alone. What is not trainable is the same to the last
    bit afterwards (see `neusemslice.training.freezing`).

    Args:
        loss: of a step's samples.
        trainable: for parameters by name, which of their entries may change; those that are not named stay as they
            are. None: all train.
        validation: re-iterable batches that no step sees; evaluated after each epoch.
        measure: further numbers for each epoch's record.
        checkpoint: a file, written after each epoch. If it is there already, the training goes on from it, and ends
            with the weights that it would have had without the interruption.
        stage: its name in progress reports, which count steps.

    Raises:
        ConfigError: nothing may train, a mask does not fit, `patience` lacks validation data, or steps of one sample
            would meet a norm.
        DatasetError: there is no sample.
        DivergedError: the loss, a weight or an output became NaN or infinite; the network is as after the last good
            epoch.
        CheckpointError: the file at `checkpoint` belongs to another training.
        StoppedError: should_stop() returned true.
    """
    run = _Run(network, samples, config, loss, trainable, validation, measure)
    run.check()
    progress = Progress(on_progress, should_stop)
    if checkpoint is not None and checkpoint.exists():
        run.resume(checkpoint)
    try:
        while not run.is_over:
            run.epoch(stage, progress)
            if checkpoint is not None:
                run.save(checkpoint)
    finally:
        run.release()
    return run.finish()


class _Run:
    """One training under way."""

    def __init__(
        self,
        network: nn.Module,
        samples: Samples,
        config: TrainingConfig,
        loss: Loss,
        trainable: Trainable | None,
        validation: Batches | None,
        measure: Measure | None,
    ) -> None:
        self._network, self._samples, self._config, self._loss = network, samples, config, loss
        self._validation, self._measure = validation, measure
        self._freeze = Freeze(network, trainable)
        self._optimizer = _optimizer(self._freeze, config)
        self._device = next(network.parameters()).device
        self._good = self._best = tensors_of(network)
        self._identity = {
            "config": config.to_dict(),
            "samples": len(samples),
            "network": _digest(self._good),
            "trainable": None if trainable is None else _digest(trainable),
        }
        self._records: list[EpochRecord] = []

    def check(self) -> None:
        """Refuse what cannot be trained, before any work."""
        if len(self._samples) == 0:
            raise DatasetError("There is no sample to train on.", hint="Pass at least one labelled batch.")
        if self._config.patience is not None and self._validation is None:
            raise ConfigError(
                "patience stops by the loss on validation data, and there is none.",
                field="patience",
                hint="Pass validation data, or leave patience out.",
            )
        self._freeze.train_mode()
        counts = any(isinstance(layer, NORMS) and layer.training for layer in self._network.modules())
        self._network.eval()
        if counts and len(self._samples) // self._steps < 2:
            raise ConfigError(
                "A step of one sample has no variance for a norm to normalise with.",
                field="batch_size",
                hint="Use a batch_size of at least 2, and at least 2 samples.",
            )

    @property
    def _steps(self) -> int:
        """Of an epoch."""
        return math.ceil(len(self._samples) / self._config.batch_size)

    @property
    def _best_epoch(self) -> int:
        """The epoch whose weights count."""
        if self._config.patience is None or not self._records:
            return len(self._records)
        losses = [record.validation_loss for record in self._records if record.validation_loss is not None]
        return 1 + min(range(len(losses)), key=losses.__getitem__)

    @property
    def is_over(self) -> bool:
        """All epochs are done, or the validation loss no longer falls."""
        done, patience = len(self._records), self._config.patience
        return done >= self._config.epochs or (patience is not None and done - self._best_epoch >= patience)

    def epoch(self, stage: str, progress: Progress) -> None:
        """Train one epoch and record it."""
        number = len(self._records) + 1
        started = time.perf_counter()
        mean = self._pass(number, stage, progress)
        seconds = time.perf_counter() - started
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self._freeze.parameters):
            raise self._diverged(number, "a weight")
        self._network.eval()
        if not self._computes():
            raise self._diverged(number, "an output")
        validated = None
        if self._validation is not None:
            validated = evaluate(self._network, self._validation, should_stop=progress.should_stop)
        self._records.append(
            EpochRecord(
                number,
                mean,
                seconds,
                None if validated is None else validated.loss,
                None if validated is None else validated.accuracy,
                {} if self._measure is None else self._measure(self._network),
            )
        )
        self._good = tensors_of(self._network)
        if self._best_epoch == number:
            self._best = self._good

    def _pass(self, number: int, stage: str, progress: Progress) -> float:
        """One epoch's steps; the mean loss."""
        self._freeze.train_mode()
        seed, total, steps = zlib.crc32(f"{self._config.seed} {number}".encode()), 0.0, self._steps
        done = (number - 1) * steps
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            for rows in _shuffled(len(self._samples), steps, seed):
                progress.report(stage, done, self._config.epochs * steps)
                value = self._step(rows, done)
                if not math.isfinite(value):
                    raise self._diverged(number, "the loss")
                total += value * len(rows)
                done += 1
        progress.report(stage, done, self._config.epochs * steps)
        return total / len(self._samples)

    def _step(self, rows: Int64[Tensor, " rows"], done: int) -> float:
        config = self._config
        like = next(self._network.parameters())
        inputs, labels = self._samples.take(rows).to(like.device, like.dtype), self._samples.labels[rows]
        if config.schedule == "cosine":
            share = done / (config.epochs * self._steps)
            for group in self._optimizer.param_groups:
                group["lr"] = config.learning_rate * (1 + math.cos(math.pi * share)) / 2
        self._optimizer.zero_grad()
        value = self._loss(self._network, Batch(inputs, labels.to(like.device), rows))
        value.backward()
        self._freeze.clear_gradients()
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._freeze.parameters, config.clip_norm)
        if config.weight_decay > 0:
            self._decay()
        self._optimizer.step()
        return float(value.detach())

    def _decay(self) -> None:
        """What the optimizer leaves to do for the partly frozen parameters, as it would have done it."""
        config = self._config
        if config.optimizer == "adamw":
            self._freeze.decay(self._optimizer.param_groups[0]["lr"] * config.weight_decay)
        else:
            self._freeze.decay_gradients(config.weight_decay)

    def _computes(self) -> bool:
        """Whether outputs are finite, for samples and other inputs alike: weights may be finite and yet too large."""
        like = next(self._network.parameters())
        inputs = self._samples.take(torch.arange(min(2, len(self._samples)))).to(like.device, like.dtype)
        with torch.no_grad():
            return all(bool(self._network(each).isfinite().all()) for each in (inputs, probe_like(inputs)))

    def _diverged(self, epoch: int, what: str) -> DivergedError:
        put_back(self._network, self._good)
        return DivergedError(
            f"In epoch {epoch} {what} became NaN or infinite.",
            network=self._network,
            last_good=len(self._records),
            hint="Lower learning_rate, or set clip_norm.",
        )

    def save(self, path: Path) -> None:
        """Write where the training stands."""
        about = {"training": self._identity, "records": [asdict(record) for record in self._records]}
        best = {} if self._config.patience is None else self._best
        SavedState(about, self._good, best, optimizer_tensors(self._optimizer)).save(path)

    def resume(self, path: Path) -> None:
        """Go on from where an earlier run stood."""
        state = SavedState.load(path)
        if state.about.get("training") != self._identity:
            raise CheckpointError(
                f"{path} belongs to another training.", hint="Delete it to train from the start, or name another file."
            )
        put_back(self._network, state.network)
        put_back_optimizer(self._optimizer, state.optimizer)
        self._records = [EpochRecord(**record) for record in state.about["records"]]
        self._good = tensors_of(self._network)
        self._best = dict(state.best) or self._good

    def release(self) -> None:
        """Eval mode, and gradients are as they were asked for before."""
        self._network.eval()
        self._freeze.release()

    def finish(self) -> Training:
        """Give the network the weights of the best epoch."""
        put_back(self._network, self._best)
        return Training(tuple(self._records), self._best_epoch)


def _optimizer(freeze: Freeze, config: TrainingConfig) -> torch.optim.Optimizer:
    partly = freeze.partly_frozen
    known = {id(parameter) for parameter in partly}
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in freeze.parameters if id(parameter) not in known]},
        {"params": partly, "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, config.learning_rate, weight_decay=config.weight_decay, fused=True)


def _shuffled(samples: int, steps: int, seed: int) -> tuple[Int64[Tensor, " rows"], ...]:
    """The samples in an order of their own, in steps of nearly equal size."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    return order.tensor_split(steps)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
