"""The `slice` job: score the neurons, cut, and say what every cut of a sweep would give."""

import json
from functools import partial
from typing import Any

import torch

from app.jobs.specs import SliceSpec
from neusemslice import ModelSlice, SliceableModel, restructure
from neusemslice.config import CALIBRATION_PER_CATEGORY
from neusemslice.data import Dataset, open_dataset
from worker.analysis import SLICING_STAGES, analyse
from worker.assignment import Assignment
from worker.facts import evaluation_split, load_model, measure_accuracy
from worker.order import plain

STAGES: tuple[str, ...] = ("load", *SLICING_STAGES, "evaluate")


def run_slice(assignment: Assignment[SliceSpec]) -> dict[str, Any]:
    """Outputs the slice (masks, curves, orders) and a report."""
    torch.set_num_threads(assignment.threads)
    assignment.on_progress("load", 0, 1)
    model, dataset = load_model(assignment.files["model"]), open_dataset(assignment.files["dataset"])
    analysis = analyse(assignment, model, dataset)
    slice_ = analysis.slice_
    slice_.save(assignment.outputs / "slice.safetensors")
    points = _cuts(assignment, model, dataset, slice_)
    result = {
        "analysis": analysis.origin,
        "evaluated_on": evaluation_split(dataset),
        "accuracy_before": points["before"]["accuracy"],
        "at_cut": points["cut"],
        "sweep": points["sweep"],
        "layers": slice_.summary(),
    }
    (assignment.outputs / "report.json").write_text(
        json.dumps(plain({"config": slice_.config.to_dict(), **result}), indent=2)
    )
    return {"result": result, "outputs": [{"name": "slice.safetensors"}, {"name": "report.json"}]}


def _cuts(
    assignment: Assignment[SliceSpec], model: SliceableModel, dataset: Dataset, slice_: ModelSlice
) -> dict[str, Any]:
    """Compression and accuracy of the network itself, at the slice's own cut, and at each of the sweep."""
    spec = assignment.spec
    measure = partial(
        measure_accuracy,
        dataset=dataset,
        batch_size=spec.batch_size,
        on_progress=None,
        should_stop=assignment.should_stop,
    )
    calibration = dataset.batches("train", spec.batch_size, limit_per_category=CALIBRATION_PER_CATEGORY)
    cuts = [slice_.config.cut, *spec.sweep]
    points = []
    assignment.on_progress("evaluate", 0, len(cuts) + 1)
    before = measure(model)
    for done, cut in enumerate(cuts, start=1):
        assignment.on_progress("evaluate", done, len(cuts) + 1)
        smaller = restructure(model, slice_.at(cut), calibration=calibration, should_stop=assignment.should_stop)
        accuracy = measure(smaller.model)["accuracy"]
        points.append({"cut": cut, "compression_rate": smaller.report.compression_rate, "accuracy": accuracy})
    return {"before": before, "cut": points[0], "sweep": points[1:]}
