"""The `restructure` job: remove the non-critical neurons, train and prune if asked, and measure before and after."""

import json
from pathlib import Path
from typing import Any

import torch

from app.jobs.specs import RestructureSpec
from neusemslice import ModelSlice, SliceableModel, restructure
from neusemslice.batches import Batches
from neusemslice.checkpoint import save_checkpoint
from neusemslice.data import Dataset, open_dataset
from worker.analysis import SLICING_STAGES, Analysis, analyse
from worker.assignment import Assignment
from worker.facts import evaluation_split, load_model, measure_accuracy, measure_cost
from worker.finishing import compressed_bytes, finish, finishing_stages
from worker.order import plain
from worker.producing import produced_model


def stages_of(spec: RestructureSpec) -> tuple[str, ...]:
    """With `slicing` the analysis comes first; a slice by deeparc skips the reconstruction."""
    analysis = SLICING_STAGES if spec.slicing is not None else ()
    reconstruction = ("reconstruct",) if spec.level("") != "none" else ()
    return ("load", *analysis, "restructure", *reconstruction, *finishing_stages(spec), "evaluate")


def run_restructure(assignment: Assignment[RestructureSpec]) -> dict[str, Any]:
    """Outputs the smaller checkpoint, the slice if it was made here, and a report."""
    torch.set_num_threads(assignment.threads)
    assignment.on_progress("load", 0, 1)
    model = load_model(assignment.files["model"])
    dataset = open_dataset(assignment.files["dataset"]) if "dataset" in assignment.files else None
    outputs: list[dict[str, Any]] = [{"name": "report.json"}]
    analysis = _analyse(assignment, model, dataset)
    slice_ = _stored_slice(assignment) if analysis is None else analysis.slice_
    if analysis is not None:
        slice_.save(assignment.outputs / "slice.safetensors")
        outputs.append({"name": "slice.safetensors"})
    smaller = restructure(
        model,
        slice_,
        branches=assignment.spec.branches,
        reconstruct=assignment.spec.level(slice_.config.strategy),
        calibration=_calibration(assignment.spec, dataset),
        on_progress=assignment.on_progress,
        should_stop=assignment.should_stop,
    )
    finished = finish(assignment, model, smaller, dataset)
    checkpoint = assignment.outputs / "checkpoint.safetensors"
    save_checkpoint(finished.model, model.input_shape, checkpoint, finished.about)
    outputs.append(produced_model(finished.model, model, checkpoint))
    result = {
        "analysis": None if analysis is None else analysis.origin,
        "cut": slice_.config.cut,
        "evaluated_on": None if dataset is None else evaluation_split(dataset),
        "before": _measure(assignment, model.graph_module, model, dataset, assignment.files["model"]),
        "after_cut": None if finished.model is smaller.model else _accuracy(assignment, smaller.model, dataset),
        "after": _measure(assignment, finished.model, model, dataset, checkpoint),
        "report": smaller.report.to_dict(),
        **finished.result,
    }
    (assignment.outputs / "report.json").write_text(json.dumps(plain(result), indent=2))
    return {"result": result, "outputs": outputs}


def _analyse(
    assignment: Assignment[RestructureSpec], model: SliceableModel, dataset: Dataset | None
) -> Analysis | None:
    """What the spec's `slicing` gives, unless it names a stored slice."""
    if assignment.spec.slicing is None:
        return None
    assert dataset is not None  # noqa: S101 the spec's own check
    return analyse(assignment, model, dataset, branches=assignment.spec.branches)


def _stored_slice(assignment: Assignment[RestructureSpec]) -> ModelSlice:
    """The slice that the spec names, cut again if asked."""
    stored, cut = ModelSlice.load(assignment.files["slice"]), assignment.spec.cut
    return stored if cut is None else stored.at(cut)


def _calibration(spec: RestructureSpec, dataset: Dataset | None) -> Batches | None:
    """What the layers that are left, or deeparc's sewing layers, are fitted to."""
    if dataset is None:
        return None
    return dataset.batches("train", spec.batch_size, limit_per_category=spec.calibration_per_category)


def _measure(
    assignment: Assignment[RestructureSpec],
    network: torch.nn.Module,
    model: SliceableModel,
    dataset: Dataset | None,
    file: Path,
) -> dict[str, Any]:
    cost = measure_cost(network, model.input_shape, file.stat().st_size)
    if assignment.spec.pruning is not None:
        cost["compressed_file_bytes"] = compressed_bytes(file)
    return cost | _accuracy(assignment, network, dataset)


def _accuracy(
    assignment: Assignment[RestructureSpec], network: torch.nn.Module, dataset: Dataset | None
) -> dict[str, float | None]:
    if dataset is None:
        return {"accuracy": None, "loss": None}
    evaluation = measure_accuracy(
        network,
        dataset,
        batch_size=assignment.spec.batch_size,
        on_progress=assignment.on_progress,
        should_stop=assignment.should_stop,
    )
    return {"accuracy": evaluation["accuracy"], "loss": evaluation["loss"]}
