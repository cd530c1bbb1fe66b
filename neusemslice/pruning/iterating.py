"""The iterations of a pruning: zero some weights, train what is left if asked, measure, and stop in time."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import fx, nn

from neusemslice.batches import Batches, require_reiterable
from neusemslice.copying import copy_graph
from neusemslice.errors import ConfigError
from neusemslice.evaluation import Evaluation, evaluate
from neusemslice.produced import Produced, as_model, as_teacher
from neusemslice.profiling import count_flops, count_parameters
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.pruning.costs import flops_without_zeros
from neusemslice.pruning.methods import choose_survivors
from neusemslice.pruning.results import Pruned, PruningIteration, PruningReport, StopReason
from neusemslice.pruning.resuming import IterationFiles
from neusemslice.pruning.stopping import check_reachable, next_amount
from neusemslice.pruning.weights import not_zeroed, prunable_weights, zero
from neusemslice.pruning_config import PruningConfig
from neusemslice.tracing import SliceableModel
from neusemslice.training import Loss, Samples, as_samples, cross_entropy, distillation
from neusemslice.training import train as train_network

_ROUNDING = 1e-9


def prune_weights(
    network: SliceableModel | Produced,
    config: PruningConfig,
    *,
    train: Batches | None = None,
    validation: Batches | None = None,
    test: Batches | None = None,
    teacher: nn.Module | SliceableModel | None = None,
    parameters_original: int | None = None,
    checkpoints: Path | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> Pruned:
    """Zero weights in iterations (the paper's RQ2). Zeros stay zero, also in fine-tuning; tensors keep their sizes.

    Args:
        network: a model, or a result such as that of `restructure`.
        train: labelled batches for `config.fine_tuning`.
        validation: re-iterable batches that `config.max_accuracy_drop` is measured on.
        test: re-iterable batches that each iteration is reported on; nothing depends on them.
        teacher: for `config.distill`; None: the network as it comes. On the network's device.
        parameters_original: of the network before it was sliced, so that compression rates count what was removed as
            well; None: the network's own.
        checkpoints: an existing folder of its own: the latest iteration is kept there, and an interrupted pruning goes
            on from it and ends as if it had not been interrupted.

    Raises:
        ConfigError: the config asks for data or a teacher that is missing, or the labels are no categories.
        TargetError: the method cannot zero that many weights.
        DatasetError: the data does not fit the model.
        DivergedError: a fine-tuning's loss became NaN or infinite; `error.network` is as after its last good epoch.
        CheckpointError: the folder belongs to another pruning.
        StoppedError: should_stop() returned true.
    """
    model = as_model(network)
    parameters = count_parameters(model.graph_module)
    original = parameters if parameters_original is None else parameters_original
    _check(config, parameters, original, train, validation, test, teacher)
    check_reachable(config, prunable_weights(model.graph_module))
    run = _Run(
        model,
        config,
        original,
        samples=None if config.fine_tuning is None or train is None else as_samples(train, model),
        loss=distillation(as_teacher(model if teacher is None else teacher, model))
        if config.distill
        else cross_entropy,
        validation=validation,
        test=test,
        files=None if checkpoints is None else IterationFiles(checkpoints, _identity(model, config, original)),
        progress=Progress(on_progress, should_stop),
    )
    return run.prune()


def _check(
    config: PruningConfig,
    parameters: int,
    original: int,
    train: Batches | None,
    validation: Batches | None,
    test: Batches | None,
    teacher: nn.Module | SliceableModel | None,
) -> None:
    """Refuse what could only fail later."""
    if config.fine_tuning is not None and train is None:
        raise ConfigError("fine_tuning has no data.", field="fine_tuning", hint="Pass train: labelled batches.")
    if validation is None:
        for field, asks in (
            ("max_accuracy_drop", config.max_accuracy_drop is not None),
            ("patience", config.fine_tuning is not None and config.fine_tuning.patience is not None),
        ):
            if asks:
                raise ConfigError(
                    f"{field} is measured on validation data, and there is none.",
                    field=field,
                    hint="Pass validation: labelled batches that are neither trained on nor used to judge the result.",
                )
    if teacher is not None and not config.distill:
        raise ConfigError("There is a teacher, but distill is off.", field="teacher", hint="Set distill.")
    if original < parameters:
        raise ConfigError(
            f"parameters_original={original:,} is less than the network's {parameters:,}.",
            field="parameters_original",
            hint="Give the number of parameters before anything was removed.",
        )
    for data in (validation, test):
        if data is not None:
            require_reiterable(data)


def _identity(model: SliceableModel, config: PruningConfig, original: int) -> dict[str, object]:
    return {"network": model.fingerprint, "config": config.to_dict(), "parameters_original": original}


class _Run:
    """One pruning under way."""

    def __init__(
        self,
        model: SliceableModel,
        config: PruningConfig,
        original: int,
        *,
        samples: Samples | None,
        loss: Loss,
        validation: Batches | None,
        test: Batches | None,
        files: IterationFiles | None,
        progress: Progress,
    ) -> None:
        self._model, self._config, self._original = model, config, original
        self._samples, self._loss, self._validation, self._test = samples, loss, validation, test
        self._files, self._progress = files, progress

    def prune(self) -> Pruned:
        """All iterations from the start, or from the latest that a file holds."""
        resumed = None if self._files is None else self._files.load(self._model)
        if resumed is None:
            current = copy_graph(self._model.graph_module)
            records = [self._measure(current, 0, 0.0)]
        else:
            current, records = resumed
        while True:
            done = records[-1].iteration
            self._progress.report("prune", done, max(self._config.iterations or 0, done + 1))
            amount = next_amount(self._config, prunable_weights(current), done)
            if isinstance(amount, str):
                return self._result(current, records, done, amount)
            candidate = copy_graph(current)
            if not self._zero(candidate, amount):
                return self._result(current, records, done, "exhausted")
            seconds = self._fine_tune(candidate, done + 1)
            records.append(self._measure(candidate, done + 1, seconds))
            if not self._holds(records):
                return self._result(current, records, done, "max_accuracy_drop")
            current = candidate
            if self._files is not None:
                self._files.save(current, self._model, records)

    def _zero(self, network: fx.GraphModule, amount: float) -> bool:
        """Zero the share; False if it is less than one weight."""
        weights = prunable_weights(network)
        before = sum(weight.unmasked for weight in weights)
        for weight, survives in zip(weights, choose_survivors(self._config.method, weights, amount), strict=True):
            zero(weight, survives)
        return sum(weight.unmasked for weight in weights) < before

    def _fine_tune(self, network: fx.GraphModule, iteration: int) -> float:
        """Seconds that it took. Each iteration draws its own orders."""
        config = self._config.fine_tuning
        if config is None or self._samples is None:
            return 0.0
        return train_network(
            network,
            self._samples,
            replace(config, seed=(config.seed + iteration) % 2**32),
            loss=self._loss,
            trainable=not_zeroed(network),
            validation=self._validation if config.patience is not None else None,
            checkpoint=None if self._files is None else self._files.training_file(iteration),
            stage="fine-tune",
            on_progress=self._progress.on_progress,
            should_stop=self._progress.should_stop,
        ).seconds

    def _measure(self, network: fx.GraphModule, iteration: int, seconds: float) -> PruningIteration:
        weights = prunable_weights(network)
        total, left = sum(weight.total for weight in weights), sum(weight.unmasked for weight in weights)
        validated = self._evaluate(network, self._validation)
        tested = validated if self._test is self._validation else self._evaluate(network, self._test)
        return PruningIteration(
            iteration=iteration,
            compression_rate=1 - (count_parameters(network) - (total - left)) / self._original,
            weights_zeroed=total - left,
            sparsity=1 - left / total,
            flops_without_zeros=flops_without_zeros(network, self._model.input_shape),
            accuracy=None if tested is None else tested.accuracy,
            loss=None if tested is None else tested.loss,
            validation_accuracy=None if validated is None else validated.accuracy,
            fine_tuning_s=seconds,
        )

    def _evaluate(self, network: fx.GraphModule, data: Batches | None) -> Evaluation | None:
        if data is None:
            return None
        return evaluate(network, data, should_stop=self._progress.should_stop)

    def _holds(self, records: Sequence[PruningIteration]) -> bool:
        """Whether the latest iteration is accurate enough."""
        drop, start, now = (
            self._config.max_accuracy_drop,
            records[0].validation_accuracy,
            records[-1].validation_accuracy,
        )
        if drop is None:
            return True
        if start is None or now is None:
            raise ConfigError(
                "max_accuracy_drop is for classification, and the labels are targets of a regression.",
                field="max_accuracy_drop",
                hint="Give sparsity or iterations instead.",
            )
        return now >= start - drop - _ROUNDING

    def _result(
        self, network: fx.GraphModule, records: Sequence[PruningIteration], result: int, reason: StopReason
    ) -> Pruned:
        parameters = count_parameters(network)
        report = PruningReport(
            config=self._config,
            parameters_original=self._original,
            parameters_removed=self._original - parameters,
            parameters=parameters,
            weights=sum(weight.total for weight in prunable_weights(network)),
            flops=count_flops(network, self._model.input_shape),
            iterations=tuple(records),
            result=result,
            stopped_by=reason,
        )
        return Pruned(network.eval().requires_grad_(requires_grad=True), self._model.input_shape, report)
