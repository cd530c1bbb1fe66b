"""What each kind of job does with the library."""

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import structlog

from app.jobs.specs import (
    AnySpec,
    CompareSpec,
    IncrementSpec,
    InspectDatasetSpec,
    InspectModelSpec,
    ReadaptSpec,
    RestructureSpec,
    ShardSpec,
    SliceSpec,
    parse_spec,
)
from neusemslice.errors import CheckpointError
from worker.assignment import Assignment
from worker.checkpoints import clear
from worker.order import CHECKPOINTS, Order
from worker.reporter import Reporter
from worker.stages import StageLog

log = structlog.get_logger(__name__)


def carry_out(
    order: Order, root: Path, pipe: int, stopping: Event, left: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Do what the order says and return the outcome; `left` gets the outputs that count even if this raises."""
    spec = parse_spec(order.spec)
    run, stages = _runner(spec)
    files = {name: root / place for name, place in order.files.items()}
    reporter = Reporter(pipe, stages, StageLog(root).begin)
    assignment = Assignment(
        spec=spec,
        files=files,
        values=order.values,
        outputs=root / "outputs",
        checkpoints=root / CHECKPOINTS,
        threads=order.limits.threads,
        on_progress=reporter,
        should_stop=stopping.is_set,
        left=[] if left is None else left,
    )
    try:
        outcome = run(assignment)
    except CheckpointError:
        if not clear(assignment.checkpoints):
            raise
        log.exception("process.checkpoints_do_not_fit")
        assignment.left.clear()
        outcome = run(assignment)
    return outcome | {"outputs": [*outcome["outputs"], *assignment.left]}


def _runner(spec: AnySpec) -> tuple[Callable[[Assignment[Any]], dict[str, Any]], tuple[str, ...]]:
    """The function and its stages. Imported here, so that reading a dataset does not wait for torch to load."""
    match spec:
        case InspectDatasetSpec():
            from worker.inspections import DATASET_STAGES, inspect_dataset

            return inspect_dataset, DATASET_STAGES
        case InspectModelSpec():
            from worker.inspections import MODEL_STAGES, inspect_model

            return inspect_model, MODEL_STAGES
        case SliceSpec():
            from worker.slicing import STAGES, run_slice

            return run_slice, STAGES
        case ShardSpec():
            from worker.sharding import STAGES, run_shard

            return run_shard, STAGES
        case RestructureSpec():
            from worker.restructuring import run_restructure, stages_of

            return run_restructure, stages_of(spec)
        case ReadaptSpec():
            from worker.readapting import readapt_stages, run_readapt

            return run_readapt, readapt_stages(spec)
        case IncrementSpec():
            from worker.incrementing import increment_stages, run_increment

            return run_increment, increment_stages(spec)
        case CompareSpec():
            from worker.comparing import STAGES, run_compare

            return run_compare, STAGES
