"""One analysis on several machines: each analyses a shard of the dataset, and the partials merge to the very slice.

The batches of the dataset are what they are without shards, and a shard is a run of whole blocks of them, so that every
number is made from the same numbers in the same order: on one kind of processor the merged slice is the unsharded one
to the last bit (where the processor adds up in a fixed order, as CPUs do).
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from neusemslice.batches import Batches, check_labels, is_regression
from neusemslice.config import Branches, SlicingConfig, require_shardable
from neusemslice.contribution.measuring import measure_blocks
from neusemslice.contribution.statistics import Statistics
from neusemslice.coverage import CoverageMeter, Samples, choose_samples, cover, read_features
from neusemslice.data import dataset
from neusemslice.errors import CheckpointError, DatasetError
from neusemslice.features import Part
from neusemslice.model_slice import ModelSlice
from neusemslice.partials import Origin, Partial, Shard, save_partial
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.slicing import assemble
from neusemslice.targets import check_targets, resolve_targets
from neusemslice.tracing import SliceableModel


def analyse_shard(
    model: SliceableModel,
    data: dataset.Batches,
    config: SlicingConfig,
    shard: Shard,
    path: str | Path,
    *,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> None:
    """Analyse the shard's part of the data and write what it gives to `path`, for `merge_partials`.

    Memory: the shard's own part of the samples that enter the CKA is held at once.

    Args:
        data: the batches of the *whole* dataset, with the batch size that all shards have.
        config: its metric, landscape, samples_per_category and memory budget are used.

    Raises:
        ConfigError: the strategy or the landscape is none that can be analysed in shards, or the memory budget is too
            small.
        DatasetError: the data does not fit the model, or an output is not finite.
        StoppedError: should_stop() returned true.
    """
    require_shardable(config)
    if len(data) == 0:
        raise DatasetError("The data has no samples.", hint="Pass at least one batch.")
    bounds = shard.bounds(len(data))
    layers = {layer.name: layer.neurons for layer in model.sliceable_layers}
    origin = Origin.of(model.fingerprint, _digest(data), len(data), config)
    blocks: list[Statistics] = []
    features: dict[Part, Tensor] = {}
    if len(bounds) > 1:
        own, ends = data.between(bounds[0], bounds[-1]), [bound - bounds[0] for bound in bounds]
        found = measure_blocks(model, own, [config.metric], ends, on_progress=on_progress, should_stop=should_stop)
        blocks = [block[config.metric] for block in found]
        features = dict(_own_features(model, data, own, bounds[0], config, Progress(on_progress, should_stop)))
    save_partial(path, origin, shard, layers, blocks, features)


def merge_partials(
    model: SliceableModel,
    config: SlicingConfig,
    paths: Sequence[str | Path],
    *,
    validation: Batches | None = None,
    branches: Branches = "union",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> ModelSlice:
    """What `slice_model` gives for the whole dataset, from the partials of all its shards.

    Args:
        config: may differ from the one that the shards were analysed with in strategy, cut, target, estimator and seed.
        paths: the partials, in any order.
        validation, branches: see `slice_model`.

    Raises:
        CheckpointError: a partial is damaged, missing, or was made from another model, dataset or config.
        ConfigError, DatasetError, TargetError, StoppedError: those of `slice_model`.
    """
    require_shardable(config)
    check_targets(model, [config], validation, branches)
    partials = _in_order([Partial.load(path) for path in paths])
    _require_origin(model, config, partials)
    statistics = reduce(Statistics.merge, (block for partial in partials for block in partial.statistics()))
    scores = {config.metric: statistics.contributions()}
    samples = choose_samples(statistics.moments.counts, config, regression=statistics.task == "regression")
    progress = Progress(on_progress, should_stop)
    features = _joined_features(model, partials, samples)
    coverage = cover(model, [config], scores, samples, features, CoverageMeter(model, progress))
    slices = [assemble(model, config, scores, coverage)]
    return resolve_targets(model, slices, validation, branches, progress)[0]


def _own_features(
    model: SliceableModel,
    data: dataset.Batches,
    own: dataset.Batches,
    first_batch: int,
    config: SlicingConfig,
    progress: Progress,
) -> Iterator[tuple[Part, Tensor]]:
    """The outputs on those of the shard's samples that the whole dataset's analysis would compare."""
    labels = check_labels(torch.from_numpy(data.labels[data.rows]), model.categories, 0)
    regression = is_regression(labels)
    counts = torch.full((model.categories,), len(labels)) if regression else _count(labels, model.categories)
    samples = choose_samples(counts, config, regression=regression)
    groups = samples.plan.group_of(labels[: first_batch * data.batch_size])
    before = _count(groups, len(samples.plan.sizes))
    meter = CoverageMeter(model, progress)
    example = own.read(own.rows[:1]).to(model.device, model.dtype)
    budget = config.memory_budget_bytes
    for part, values in read_features(model, own, samples.plan, example, budget, meter.report, before):
        meter.report(len(samples.categories[part[1]]))
        if values is not None and len(values):
            yield part, values.cpu()


def _joined_features(
    model: SliceableModel, partials: Sequence[Partial], samples: Samples
) -> Iterator[tuple[Part, Tensor | None]]:
    """Each part's features of all shards, one part at a time."""
    for layer in model.sliceable_layers:
        for group in range(len(samples.plan.sizes)):
            part = (layer.name, group)
            found = [values for partial in partials if (values := partial.features(part)) is not None]
            yield part, torch.cat(found).to(model.device) if found else None


def _in_order(partials: Sequence[Partial]) -> list[Partial]:
    """Raises CheckpointError unless they are the shards of one analysis, each once."""
    ordered = sorted(partials, key=lambda partial: partial.shard.index)
    expected = [Shard(index, len(ordered)) for index in range(len(ordered))]
    if not ordered or [partial.shard for partial in ordered] != expected:
        named = ", ".join(f"{partial.shard.index} of {partial.shard.count}" for partial in ordered)
        raise CheckpointError(
            f"The partials are not those of all shards, each once: there is {named or 'none'}.",
            hint="Give the partial of every shard of one analysis.",
        )
    for partial in ordered:
        if partial.origin != ordered[0].origin:
            raise CheckpointError(
                f"{partial.path} and {ordered[0].path} were made from different data, models or configs.",
                hint="Analyse all shards with the same model, dataset, batch size and config.",
            )
    return ordered


def _require_origin(model: SliceableModel, config: SlicingConfig, partials: Sequence[Partial]) -> None:
    origin = partials[0].origin
    if Origin.of(model.fingerprint, origin.data, origin.batches, config) != origin:
        raise CheckpointError(
            f"{partials[0].path} was made from another model or another config: {dict(origin.rests_on)}.",
            hint="Merge with the model and the metric, landscape, samples_per_category and memory budget of the "
            "shards.",
        )


def _count(groups: Tensor, size: int) -> Tensor:
    return torch.bincount(groups, minlength=size)


def _digest(data: dataset.Batches) -> str:
    digest = hashlib.sha256(f"{data.batch_size} {data.labels.dtype} {data.labels.shape}".encode())
    digest.update(data.rows.tobytes())
    digest.update(data.labels[data.rows].tobytes())
    return digest.hexdigest()
