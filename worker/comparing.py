"""The `compare` job: strategies, metrics and cuts on one model and dataset."""

from typing import Any

import torch

from app.jobs.specs import CompareSpec
from neusemslice import compare
from neusemslice.comparison.report import summary
from neusemslice.config import CALIBRATION_PER_CATEGORY
from neusemslice.data import open_dataset
from worker.assignment import Assignment
from worker.facts import evaluation_split, load_model

STAGES: tuple[str, ...] = ("load", "score", "coverage", "cuts", "evaluate", "pilot")
OUTPUTS = ("comparison.json", "comparison.csv", "report.html")


def run_compare(assignment: Assignment[CompareSpec]) -> dict[str, Any]:
    """Outputs every measured number as JSON and CSV, and a report to read."""
    spec = assignment.spec
    torch.set_num_threads(assignment.threads)
    assignment.on_progress("load", 0, 1)
    model, dataset = load_model(assignment.files["model"]), open_dataset(assignment.files["dataset"])
    split = evaluation_split(dataset)
    found = compare(
        {assignment.values["model_name"]: model},
        dataset.batches("train", spec.batch_size, limit_per_category=spec.limit_per_category),
        dataset.batches(split, spec.batch_size),
        spec.to_config(),
        calibration=dataset.batches("train", spec.batch_size, limit_per_category=CALIBRATION_PER_CATEGORY),
        evaluated_on=split,
        category_names=dataset.facts.class_names,
        on_progress=assignment.on_progress,
        should_stop=assignment.should_stop,
    )
    found.write(assignment.outputs)
    values = found.to_dict()
    result = {
        "evaluated_on": split,
        "summary": summary(found),
        "accuracy_before": found.models[0].accuracy,
        **{name: values[name] for name in ("common_range", "areas", "left_out", "winners", "ties")},
    }
    return {"result": result, "outputs": [{"name": name} for name in OUTPUTS]}
