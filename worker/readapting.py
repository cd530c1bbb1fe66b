"""The `readapt` job: critical neurons learn attacked or new samples, and the result is attacked afresh."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from app.jobs.specs import ReadaptSpec
from neusemslice import ModelSlice, SliceableModel, ValidRange, readapt, slice_model
from neusemslice.batches import Batches
from neusemslice.data import Dataset, check_dataset_fits, open_dataset
from neusemslice.errors import DatasetError
from neusemslice.readaptation_config import ReadaptConfig
from worker.analysis import SLICING_STAGES, Analysis, analyse
from worker.assignment import Assignment
from worker.facts import evaluation_split, load_model
from worker.order import plain
from worker.producing import leaving_last_good, produced_model

TRAINING = "training.safetensors"


def readapt_stages(spec: ReadaptSpec) -> tuple[str, ...]:
    """Analyses first, where there are any; new samples are not attacked."""
    analysis = SLICING_STAGES if spec.analysis is not None else ()
    layers = ("layers",) if spec.method == "semantic+deeparc" else ()
    attacked = spec.attack is not None
    return (
        "load",
        *analysis,
        *layers,
        *(("attack",) if attacked else ()),
        "train",
        *(("reattack",) if attacked else ()),
        "evaluate",
    )


def run_readapt(assignment: Assignment[ReadaptSpec]) -> dict[str, Any]:
    """Outputs the repaired checkpoint, the slice if it was made here, and a report."""
    spec = assignment.spec
    torch.set_num_threads(assignment.threads)
    assignment.on_progress("load", 0, 1)
    model, dataset = load_model(assignment.files["model"]), open_dataset(assignment.files["dataset"])
    new = _new_samples(assignment, model, dataset)
    outputs: list[dict[str, Any]] = [{"name": "report.json"}]
    analysis = None if spec.analysis is None else analyse(assignment, model, dataset)
    if analysis is not None:
        analysis.slice_.save(assignment.outputs / "slice.safetensors")
        outputs.append({"name": "slice.safetensors"})
    slices = _slices(assignment, model, dataset, analysis)
    split = evaluation_split(dataset)
    with leaving_last_good(assignment, model, {}):
        found = readapt(
            model,
            dataset.batches("train", spec.batch_size),
            _config_beside(slices, spec),
            new=new,
            slice_=slices or None,
            test=dataset.batches(split, spec.batch_size) if split != "train" else None,
            valid_range=_valid_range(spec, dataset),
            checkpoint=assignment.checkpoints / TRAINING,
            on_progress=assignment.on_progress,
            should_stop=assignment.should_stop,
        )
    checkpoint = assignment.outputs / "checkpoint.safetensors"
    found.save(checkpoint)
    outputs.append(produced_model(found.model, model, checkpoint))
    result = {
        "analysis": None if analysis is None else analysis.origin,
        "cut": slices[0].config.cut if slices else None,
        "evaluated_on": split,
        "report": found.report.to_dict(),
    }
    (assignment.outputs / "report.json").write_text(json.dumps(plain(result), indent=2))
    return {"result": result, "outputs": outputs}


def _new_samples(assignment: Assignment[ReadaptSpec], model: SliceableModel, dataset: Dataset) -> Batches | None:
    """The new dataset's train split.

    Raises:
        DatasetError: its samples have another shape, or its categories are not the first ones of the dataset's.
    """
    if "new_dataset" not in assignment.files:
        return None
    new = open_dataset(assignment.files["new_dataset"])
    check_dataset_fits(new.facts, model.input_shape, model.categories)
    names, known = new.facts.class_names, dataset.facts.class_names
    if names != known[: len(names)]:
        raise DatasetError(
            f"The new dataset's categories are {list(names)}, those of the dataset {list(known)}.",
            hint="Give both the same categories: in an archive a folder for each, in the same order.",
        )
    return new.batches("train", assignment.spec.batch_size)


def _slices(
    assignment: Assignment[ReadaptSpec], model: SliceableModel, dataset: Dataset, analysis: Analysis | None
) -> list[ModelSlice]:
    """What says which neurons train: the analysis or the stored slice, and for a method of two the layers besides."""
    spec = assignment.spec
    if spec.strategy is None:
        return []
    if analysis is not None:
        slices = [analysis.slice_]
    else:
        stored = ModelSlice.load(assignment.files["slice"])
        slices = [stored if spec.cut is None else stored.at(spec.cut)]
    for config in spec.to_config().slicing_configs()[1:]:
        batches = dataset.batches("train", spec.batch_size, limit_per_category=spec.limit_per_category)
        slices.append(
            slice_model(
                model,
                batches,
                config,
                on_progress=lambda _, done, total: assignment.on_progress("layers", done, total),
                should_stop=assignment.should_stop,
            )
        )
    return slices


def _config_beside(slices: Sequence[ModelSlice], spec: ReadaptSpec) -> ReadaptConfig:
    """The job's config without what the slices already say."""
    values = spec.to_config().to_dict()
    return ReadaptConfig.from_dict(values | ({"slicing": None, "deeparc_threshold": None} if slices else {}))


def _valid_range(spec: ReadaptSpec, dataset: Dataset) -> ValidRange | None:
    if spec.attack is None or spec.attack.value_range is None:
        return None
    return ValidRange.of_stored(spec.attack.value_range, dataset.facts.preprocess, dataset.facts.input_shape[0])
