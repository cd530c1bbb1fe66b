"""What the service remembers and reports about networks, in one place for every kind of job."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from neusemslice import SliceableModel, evaluate, trace
from neusemslice.checkpoint import read_checkpoint_metadata
from neusemslice.data import Dataset
from neusemslice.profiling import count_flops, count_parameters, measure_latency
from neusemslice.progress import OnProgress, ShouldStop
from neusemslice.weights import load_network

LATENCY_BATCHES = (1, 64)
LATENCY_REPEATS = 20


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(path: Path) -> SliceableModel:
    """A stored checkpoint, in canonical form, on the device."""
    architecture = read_checkpoint_metadata(path)["architecture"]
    network = load_network(architecture, path)
    return trace(network, torch.zeros(1, *architecture["input_shape"])).to(device())


def model_facts(model: SliceableModel) -> dict[str, Any]:
    """What the catalogue shows about a network."""
    return {
        "input_shape": list(model.input_shape),
        "categories": model.categories,
        "parameters": count_parameters(model.graph_module),
        "flops": count_flops(model.graph_module, model.input_shape),
        "sliceable_layers": [{"name": layer.name, "neurons": layer.neurons} for layer in model.sliceable_layers],
        "coupled": [list(names) for names in model.coupled],
        "fingerprint": model.fingerprint,
    }


def evaluation_split(dataset: Dataset) -> str:
    """The test split; without one, the split that the analysis also sees (the result names it)."""
    return "test" if "test" in dataset.splits else "train"


def measure_accuracy(
    network: nn.Module | SliceableModel,
    dataset: Dataset,
    *,
    batch_size: int,
    on_progress: OnProgress | None,
    should_stop: ShouldStop,
) -> dict[str, Any]:
    """Accuracy and loss on the evaluation split."""
    data = dataset.batches(evaluation_split(dataset), batch_size)
    return evaluate(network, data, on_progress=on_progress, should_stop=should_stop).to_dict()


def measure_cost(network: nn.Module, input_shape: tuple[int, ...], file_bytes: int) -> dict[str, Any]:
    """Size and speed of a network as it would be deployed."""
    latency = {
        str(batch): 1000 * measure_latency(network, input_shape, batch_size=batch, repeats=LATENCY_REPEATS)
        for batch in LATENCY_BATCHES
    }
    return {
        "parameters": count_parameters(network),
        "flops": count_flops(network, input_shape),
        "file_bytes": file_bytes,
        "latency_ms": latency,
        "latency_device": str(device()),
    }
