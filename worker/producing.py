"""What kinds that produce a model have in common: the outputs that describe it, and the last good one of a training."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx

from neusemslice import SliceableModel, trace
from neusemslice.checkpoint import read_checkpoint_metadata, save_checkpoint
from neusemslice.errors import DivergedError
from worker.assignment import Assignment
from worker.facts import model_facts

LAST_GOOD = "last_good.safetensors"


def produced_model(network: fx.GraphModule, model: SliceableModel, checkpoint: Path) -> dict[str, Any]:
    """The output that makes a written checkpoint a model of the catalogue; the network takes what `model` takes."""
    facts = model_facts(trace(network, torch.zeros(1, *model.input_shape, device=model.device)))
    facts["architecture"] = read_checkpoint_metadata(checkpoint)["architecture"]
    return {"name": checkpoint.name, "role": "model", "facts": facts}


@contextmanager
def leaving_last_good(assignment: Assignment[Any], model: SliceableModel, about: dict[str, Any]) -> Iterator[None]:
    """If a training in the block diverges, hand on the network after its last good epoch."""
    try:
        yield
    except DivergedError as error:
        about = about | {"diverged": {"last_good_epoch": error.last_good}}
        save_checkpoint(error.network, model.input_shape, assignment.outputs / LAST_GOOD, about)
        assignment.leave(LAST_GOOD)
        raise
