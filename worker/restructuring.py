"""The `restructure` job: remove the non-critical neurons, prove the result, and measure before and after."""

import json
from typing import Any

import torch
from neusemslice.checkpoint import read_checkpoint_metadata
from neusemslice.data import Dataset, open_dataset

from app.jobs.specs import RestructureSpec
from neusemslice import ModelSlice, SliceableModel, restructure, slice_model, trace
from worker.facts import evaluation_split, load_model, measure_accuracy, measure_cost, model_facts
from worker.order import Task

SLICING_STAGES = ("score", "coverage")


def stages_of(spec: RestructureSpec) -> tuple[str, ...]:
    """With `slicing` the analysis comes first."""
    analysis = SLICING_STAGES if spec.slicing is not None else ()
    return ("load", *analysis, "restructure", "evaluate")


def run_restructure(task: Task[RestructureSpec]) -> dict[str, Any]:
    """Outputs the smaller checkpoint, the slice if it was made here, and a report."""
    torch.set_num_threads(task.threads)
    task.on_progress("load", 0, 1)
    model = load_model(task.files["model"])
    dataset = open_dataset(task.files["dataset"]) if "dataset" in task.files else None
    outputs: list[dict[str, Any]] = [{"name": "report.json"}]
    slice_ = _slice(task, model, dataset)
    if task.spec.slicing is not None:
        slice_.save(task.outputs / "slice.safetensors")
        outputs.append({"name": "slice.safetensors"})
    smaller = restructure(model, slice_, on_progress=task.on_progress, should_stop=task.should_stop)
    checkpoint = task.outputs / "checkpoint.safetensors"
    smaller.save(checkpoint)
    example = torch.zeros(1, *model.input_shape, device=model.device)
    facts = model_facts(trace(smaller.model, example))
    facts["architecture"] = read_checkpoint_metadata(checkpoint)["architecture"]
    outputs.append({"name": checkpoint.name, "role": "model", "facts": facts})
    result = {
        "cut": slice_.config.cut,
        "evaluated_on": None if dataset is None else evaluation_split(dataset),
        "before": _measure(task, model.graph_module, model, dataset, task.files["model"].stat().st_size),
        "after": _measure(task, smaller.model, model, dataset, checkpoint.stat().st_size),
        "report": smaller.report.to_dict(),
    }
    (task.outputs / "report.json").write_text(json.dumps(result, indent=2))
    return {"result": result, "outputs": outputs}


def _slice(task: Task[RestructureSpec], model: SliceableModel, dataset: Dataset | None) -> ModelSlice:
    """The stored slice, cut again if asked; or a new one."""
    spec = task.spec
    if spec.slicing is None:
        stored = ModelSlice.load(task.files["slice"])
        return stored if spec.cut is None else stored.at(spec.cut)
    assert dataset is not None  # noqa: S101 the spec's own check
    data = dataset.batches("train", spec.batch_size, limit_per_category=spec.limit_per_category)
    config = spec.slicing.to_config(seed=spec.seed)
    return slice_model(model, data, config, on_progress=task.on_progress, should_stop=task.should_stop)


def _measure(
    task: Task[RestructureSpec],
    network: torch.nn.Module,
    model: SliceableModel,
    dataset: Dataset | None,
    file_bytes: int,
) -> dict[str, Any]:
    cost = measure_cost(network, model.input_shape, file_bytes)
    if dataset is None:
        return cost | {"accuracy": None, "loss": None}
    evaluation = measure_accuracy(
        network,
        dataset,
        batch_size=task.spec.batch_size,
        on_progress=task.on_progress,
        should_stop=task.should_stop,
    )
    return cost | {"accuracy": evaluation["accuracy"], "loss": evaluation["loss"]}
