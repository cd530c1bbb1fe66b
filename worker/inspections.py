"""Inspections: an upload is read once, checked, and stored in the one form that jobs use."""

from typing import Any

from app.jobs.specs import InspectDatasetSpec, InspectModelSpec
from neusemslice.data import ImportLimits, Preprocess, import_dataset
from worker.assignment import Assignment

DATASET_STAGES = ("import",)
MODEL_STAGES = ("load", "trace")


def inspect_dataset(assignment: Assignment[InspectDatasetSpec]) -> dict[str, Any]:
    """Read the file as `reading` says and write the canonical dataset. Needs no torch."""
    reading = assignment.values["reading"]
    assignment.on_progress("import", 0, 1)
    facts = import_dataset(
        assignment.files["source"],
        assignment.outputs / "dataset.safetensors",
        format=reading.get("format", "auto"),
        preprocess=Preprocess.from_dict(reading.get("preprocess", {})),
        limits=ImportLimits(),
        on_progress=assignment.on_progress,
        should_stop=assignment.should_stop,
    )
    return {"outputs": [{"name": "dataset.safetensors", "role": "dataset", "facts": facts.to_dict()}]}


def inspect_model(assignment: Assignment[InspectModelSpec]) -> dict[str, Any]:
    """Build the architecture, fit the weights, lower the network, and write it as a checkpoint."""
    import torch

    from neusemslice import trace
    from neusemslice.architecture import input_shape_of
    from neusemslice.checkpoint import save_checkpoint
    from neusemslice.weights import load_network
    from worker.facts import model_facts

    torch.set_num_threads(assignment.threads)
    architecture = assignment.values["architecture"]
    input_shape = input_shape_of(architecture)
    assignment.on_progress("load", 0, 1)
    network = load_network(architecture, assignment.files["weights"])
    assignment.on_progress("trace", 0, 1)
    model = trace(network, torch.zeros(1, *input_shape))
    save_checkpoint(model.graph_module, model.input_shape, assignment.outputs / "model.safetensors")
    return {"outputs": [{"name": "model.safetensors", "role": "model", "facts": model_facts(model)}]}
