"""The `shard` job: one part of the analysis of another job."""

from typing import Any

import torch

from app.jobs.specs import ShardSpec
from neusemslice import Shard, analyse_shard
from neusemslice.config import DEFAULT_CUTS
from neusemslice.data import open_dataset
from worker.analysis import SLICING_STAGES, analysed
from worker.assignment import Assignment
from worker.facts import load_model

STAGES: tuple[str, ...] = ("load", *SLICING_STAGES)
NAME = "partial.safetensors"


def run_shard(assignment: Assignment[ShardSpec]) -> dict[str, Any]:
    """Outputs the shard's partial."""
    spec = assignment.spec
    torch.set_num_threads(assignment.threads)
    assignment.on_progress("load", 0, 1)
    model, dataset = load_model(assignment.files["model"]), open_dataset(assignment.files["dataset"])
    data, _ = analysed(dataset, spec, spec.slicing)
    analyse_shard(
        model,
        data,
        spec.slicing.to_config(seed=spec.seed).with_cut(DEFAULT_CUTS[spec.slicing.strategy]),
        Shard(spec.index, spec.count),
        assignment.outputs / NAME,
        on_progress=assignment.on_progress,
        should_stop=assignment.should_stop,
    )
    return {"outputs": [{"name": NAME, "role": "analysis"}]}
