"""The `increment` job: a model learns further categories, and what is kept for the next ones is an artifact."""

import json
from typing import Any

import torch

from app.jobs.specs import IncrementSpec
from neusemslice import IncrementMemory, SliceableModel, learn_increment
from neusemslice.batches import Batches
from neusemslice.data import Dataset, open_dataset
from neusemslice.data.dataset import Batches as DatasetBatches
from neusemslice.increments import Together
from worker.assignment import Assignment
from worker.facts import evaluation_split, load_model
from worker.order import plain
from worker.producing import leaving_last_good, produced_model

MEMORY = "memory.safetensors"


def increment_stages(spec: IncrementSpec) -> tuple[str, ...]:
    """Critical neurons are found of what the model knows, unless the memory has them, and of the new task."""
    config = spec.to_config()
    settling: tuple[str, ...] = ("score", "coverage") if config.freezes else ()
    settling += ("restructure", "reconstruct") if config.isolates else ()
    first = settling if spec.memory_id is None else ()
    return ("load", *first, "train", *(f"{stage}_new" for stage in settling), "evaluate")


def run_increment(assignment: Assignment[IncrementSpec]) -> dict[str, Any]:
    """Outputs the checkpoint with further outputs, the memory, and a report."""
    spec, files = assignment.spec, assignment.files
    torch.set_num_threads(assignment.threads)
    assignment.on_progress("load", 0, 1)
    model, new = load_model(files["model"]), open_dataset(files["new_dataset"])
    known = open_dataset(files["dataset"]) if "dataset" in files else None
    memory = IncrementMemory.load(files["memory"]) if "memory" in files else None
    needed = memory is None and spec.method != "retrain"
    with leaving_last_good(assignment, model, {}):
        result = learn_increment(
            model,
            _known(spec, known, "train") if needed and known is not None else None,
            _new(spec, new, "train", model),
            spec.to_config(),
            memory=memory,
            evaluation=None if known is None else _evaluation(spec, known, new, model),
            checkpoint=assignment.checkpoints,
            on_progress=assignment.on_progress,
            should_stop=assignment.should_stop,
        )
    checkpoint = assignment.outputs / "checkpoint.safetensors"
    result.save(checkpoint, assignment.outputs / MEMORY)
    summary = {
        "evaluated_on": None if known is None else [evaluation_split(known), evaluation_split(new)],
        "report": result.report.to_dict(),
    }
    (assignment.outputs / "report.json").write_text(json.dumps(plain(summary), indent=2))
    outputs = [
        {"name": "report.json"},
        {"name": MEMORY},
        produced_model(result.model, model, checkpoint),
    ]
    return {"result": summary, "outputs": outputs}


def _known(spec: IncrementSpec, dataset: Dataset, split: str) -> DatasetBatches:
    limit = spec.limit_per_category if split == "train" else None
    batches = dataset.batches(split, spec.batch_size, limit_per_category=limit)
    return batches if spec.labels is None else batches.numbered(spec.labels)


def _new(spec: IncrementSpec, dataset: Dataset, split: str, model: SliceableModel) -> DatasetBatches:
    """The samples of the new task, with labels after the model's own."""
    limit = spec.limit_per_category if split == "train" else None
    batches = dataset.batches(split, spec.batch_size, limit_per_category=limit)
    return batches.numbered(spec.new_labels or range(dataset.facts.categories), first=model.categories)


def _evaluation(spec: IncrementSpec, known: Dataset, new: Dataset, model: SliceableModel) -> Batches:
    return Together([_known(spec, known, evaluation_split(known)), _new(spec, new, evaluation_split(new), model)])
