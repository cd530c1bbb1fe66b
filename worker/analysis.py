"""How jobs find the critical neurons of a model: by an analysis of their own, or by one that was made before."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from app.jobs.specs import ClientSpec, ShardSpec, SlicingParams
from app.jobs.specs.analysing import analysis_of, holds_out
from app.jobs.specs.sharding import PARTIAL
from neusemslice import ModelSlice, SliceableModel, merge_partials, slice_model
from neusemslice.config import DEFAULT_CUTS, Branches, SlicingConfig
from neusemslice.data import Dataset
from neusemslice.data.dataset import Batches
from neusemslice.errors import CheckpointError, DatasetError
from neusemslice.progress import Progress
from neusemslice.safetensors_file import replacing
from neusemslice.targets import check_targets, resolve_targets
from worker.assignment import Assignment

VALIDATION_SHARE = 0.1
ANALYSIS = "analysis.safetensors"
CUT = "cut.json"
SLICING_STAGES = ("score", "coverage")


@dataclass(frozen=True)
class Analysis:
    """A job's slice, and whether its contributions were computed for this job or for an earlier one."""

    slice_: ModelSlice
    origin: Literal["computed", "cached"]


def analyse(
    assignment: Assignment[ClientSpec], model: SliceableModel, dataset: Dataset, *, branches: Branches = "union"
) -> Analysis:
    """Slice the job's own model on the train split, as its spec says (see `analysis_of`).

    Where accuracy is to be held, a part of the split is kept aside to measure that on. The slice is the same whether
    the analysis was made before or not. A cut that an earlier attempt found stays: measured times are never the same
    twice, and what was trained since rests on it.
    """
    spec, slicing = assignment.spec, analysis_of(assignment.spec)
    assert slicing is not None  # noqa: S101 other jobs do not come here
    config = slicing.to_config(seed=spec.seed)
    data, validation = analysed(dataset, spec, slicing)
    check_targets(model, [config], validation, branches)
    try:
        uncut, origin = _uncut(assignment, model, data, config)
    except DatasetError as error:
        if validation is None:
            raise
        kept_aside = "A tenth of each category's samples, at least one, is held out to measure max_accuracy_drop on."
        raise DatasetError(f"{error.message} {kept_aside}", hint=error.hint) from error
    kept = assignment.checkpoints / CUT
    if kept.exists():
        return Analysis(replace(uncut, config=config.resolved(json.loads(kept.read_text())["cut"])), origin)
    progress = Progress(assignment.on_progress, assignment.should_stop)
    (slice_,) = resolve_targets(model, [replace(uncut, config=config)], validation, branches, progress)
    if config.target is not None:
        with replacing(kept) as draft:
            draft.write_text(json.dumps({"cut": slice_.config.cut}))
    return Analysis(slice_, origin)


def analysed(dataset: Dataset, spec: ClientSpec | ShardSpec, slicing: SlicingParams) -> tuple[Batches, Batches | None]:
    """What a job analyses, and what it keeps aside to measure accuracy on, if it has to hold that."""
    if not holds_out(slicing):
        return dataset.batches("train", spec.batch_size, limit_per_category=spec.limit_per_category), None
    return dataset.hold_out(
        VALIDATION_SHARE, spec.batch_size, seed=spec.seed, limit_per_category=spec.limit_per_category
    )


def _uncut(
    assignment: Assignment[ClientSpec], model: SliceableModel, data: Batches, config: SlicingConfig
) -> tuple[ModelSlice, Literal["computed", "cached"]]:
    """The analysis under all cuts of a config: the project's, an earlier attempt's, or a new one, which is kept."""
    cached = _load(assignment.files.get("analysis"), model)
    if cached is not None:
        return cached, "cached"
    kept = assignment.checkpoints / ANALYSIS
    if kept.exists():
        uncut = ModelSlice.load(kept)
    else:
        uncut = _merged(assignment, model, config) or slice_model(
            model,
            data,
            config.with_cut(DEFAULT_CUTS[config.strategy]),
            on_progress=assignment.on_progress,
            should_stop=assignment.should_stop,
        )
        with replacing(kept) as draft:
            uncut.save(draft)
    uncut.save(assignment.outputs / ANALYSIS)
    assignment.leave(ANALYSIS, role="analysis")
    return uncut, "computed"


def _merged(assignment: Assignment[ClientSpec], model: SliceableModel, config: SlicingConfig) -> ModelSlice | None:
    """What the job's shards found, if there are any. Partials that cannot be used are as good as none."""
    paths = [path for name, path in assignment.files.items() if name.startswith(PARTIAL)]
    if not paths:
        return None
    try:
        return merge_partials(
            model,
            config.with_cut(DEFAULT_CUTS[config.strategy]),
            paths,
            on_progress=assignment.on_progress,
            should_stop=assignment.should_stop,
        )
    except CheckpointError as error:
        print(f"the partials are not used: {error}")  # noqa: T201 into the job's log
        return None


def _load(path: Path | None, model: SliceableModel) -> ModelSlice | None:
    """A stored analysis. One that cannot be read, or is another model's, is as good as none: it is made again."""
    if path is None:
        return None
    try:
        stored = ModelSlice.load(path)
    except CheckpointError as error:
        print(f"the stored analysis is not used: {error}")  # noqa: T201 into the job's log
        return None
    return stored if stored.model_fingerprint == model.fingerprint else None
