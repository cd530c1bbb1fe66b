"""Re-adaptation: critical neurons learn attacked or new samples, and the rest of the network stays as it is."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from neusemslice.batches import Batches
from neusemslice.copying import copy_graph
from neusemslice.errors import ConfigError, SliceMismatchError
from neusemslice.model_slice import ModelSlice
from neusemslice.profiling import count_parameters
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.readaptation.judging import Judge
from neusemslice.readaptation.lots import Given, at_once, gather
from neusemslice.readaptation.report import Readapted, ReadaptReport
from neusemslice.readaptation.trainable import trainable_parameters
from neusemslice.readaptation.valid_range import ValidRange
from neusemslice.readaptation_config import ReadaptConfig
from neusemslice.slicing import slice_many
from neusemslice.tracing import SliceableModel
from neusemslice.training import Samples, as_samples, batches_of, train


def readapt(
    model: SliceableModel,
    data: Batches,
    config: ReadaptConfig,
    *,
    new: Batches | None = None,
    slice_: ModelSlice | Sequence[ModelSlice] | None = None,
    test: Batches | None = None,
    validation: Batches | None = None,
    valid_range: ValidRange | None = None,
    checkpoint: Path | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> Readapted:
    """Make a network withstand attacks, or learn new samples, by training its critical neurons (paper section 4.2).

    `config.samples` clean samples are drawn from the data and attacked; the loss of a step is CE(M(x), y) +
    CE(M(x_adv), y) (formula 8), and only what the method chooses may change (formula 9): the rest is the same to the
    last bit. Then the result is attacked afresh, on samples that it has not seen.

    Args:
        data: batches (inputs, labels) of what the network knows; neurons are scored on all of them.
        config: what trains, the attack and the training.
        new: labelled samples of the user's own (drifted, misclassified) that take the attacked ones' place.
        slice_: the slice (or the two of `semantic+deeparc`) that says what trains, instead of an analysis; its own cut
            is in force, and the config names none.
        test: batches for the clean accuracy; `config.samples` of them are attacked in the end. Default: the samples of
            `data` that were not drawn.
        validation: batches that early stopping and a target of accuracy look at; at most `config.samples` of them,
            and their attacked counterparts, give the loss. Default: a share of the samples.
        valid_range: of the inputs, the unit of an attack's strength. Default: what `data` shows.
        checkpoint: a file that the training goes on from after an interruption, see `neusemslice.training.train`.

    Raises:
        ConfigError: there are neither an attack nor new samples, or both; or a slice, and a config for one.
        DatasetError: data does not fit the model, has no categories, or is too small for what is held out.
        SliceMismatchError: a slice belongs to another model, or is not of the method's strategy.
        DivergedError: the loss became NaN or infinite; `error.network` is the network after the last good epoch.
        StoppedError: should_stop() returned true.
    """
    started = time.perf_counter()
    progress = Progress(on_progress, should_stop)
    stored = _check(model, config, new, slice_)
    given = Given(as_samples(data, model), *(_samples(lot, model) for lot in (new, test, validation)))
    unit = _unit(model, given.known, config, valid_range)
    lots = gather(model, given, config, unit, progress)
    slices = stored or slice_many(
        model,
        batches_of(given.known, at_once(model)),
        config.slicing_configs(),
        validation=None if given.validation is None else batches_of(given.validation, at_once(model)),
        on_progress=on_progress,
        should_stop=should_stop,
    )
    masks = trainable_parameters(model, slices)
    network = copy_graph(model.graph_module)
    judge = Judge(model, lots, progress)
    training = train(
        network,
        lots.pairs.clean,
        config.training,
        loss=lots.pairs.loss,
        trainable=masks if slices else None,
        validation=lots.validation,
        measure=judge.after_an_epoch,
        checkpoint=checkpoint,
        on_progress=on_progress,
        should_stop=should_stop,
    )
    network.requires_grad_(requires_grad=True)
    accuracies = judge.judge(network, config, unit)
    report = ReadaptReport(
        config=_in_force(config, slices),
        parameters=count_parameters(network),
        trained_parameters=sum(int(mask.sum()) for mask in masks.values()),
        samples=len(lots.clean),
        counterparts=len(lots.counterparts),
        accuracies=accuracies,
        training=training,
        seconds=time.perf_counter() - started,
    )
    return Readapted(network, model.input_shape, report)


def _check(
    model: SliceableModel,
    config: ReadaptConfig,
    new: Batches | None,
    slice_: ModelSlice | Sequence[ModelSlice] | None,
) -> list[ModelSlice]:
    """The slices that were given, in the order of the method's analyses."""
    if (config.attack is None) == (new is None):
        raise ConfigError(
            f"There are {'neither an attack nor' if new is None else 'both an attack and'} new samples.",
            field="attack",
            hint="Set config.attack to attack samples, or leave it out and pass new samples.",
        )
    if slice_ is None:
        return []
    if config.slicing is not None or config.deeparc_threshold is not None:
        raise ConfigError(
            "A slice is given, and the config says how to make one.",
            field="slicing" if config.slicing is not None else "deeparc_threshold",
            hint="Leave it out of the config: the slice's own cut is in force.",
        )
    slices = [slice_] if isinstance(slice_, ModelSlice) else list(slice_)
    by_strategy = {own.config.strategy: own for own in slices}
    wanted = [own.strategy for own in config.slicing_configs()]
    if len(slices) != len(wanted) or by_strategy.keys() != set(wanted):
        raise SliceMismatchError(
            f"method={config.method!r} takes slices by {wanted}, and those given are by "
            f"{[own.config.strategy for own in slices]}.",
            hint="Give one slice for each, or leave slice_ out.",
        )
    for own in slices:
        if own.model_fingerprint != model.fingerprint:
            raise SliceMismatchError(
                "The slice was made from another model: the fingerprints differ.", hint="Slice this model."
            )
    return [by_strategy[strategy] for strategy in wanted]


def _samples(lot: Batches | None, model: SliceableModel) -> Samples | None:
    return None if lot is None else as_samples(lot, model)


def _unit(
    model: SliceableModel, known: Samples, config: ReadaptConfig, valid_range: ValidRange | None
) -> ValidRange | None:
    if config.attack is None:
        return None
    unit = valid_range or ValidRange.seen_in(known)
    unit.check_channels(model.input_shape)
    return unit


def _in_force(config: ReadaptConfig, slices: Sequence[ModelSlice]) -> ReadaptConfig:
    """The config with the cuts of the slices that say what trains."""
    if not slices:
        return config
    threshold = slices[1].config.threshold if len(slices) > 1 else None
    return replace(config, slicing=slices[0].config, deeparc_threshold=threshold)
