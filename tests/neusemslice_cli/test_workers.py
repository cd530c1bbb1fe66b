"""Which worker processes `neusemslice worker` becomes."""

import pytest

from app.db import Database
from app.errors import InvalidInputError
from app.settings import Settings
from neusemslice_cli.workers import Lane, plan_lanes, run_workers
from worker.gpus import Gpu

BOTH = ("inspect", "compute")
GPUS = [Gpu(0, "GPU-a"), Gpu(1, "GPU-b", part=3)]


def test_each_gpu_has_a_worker_and_inspections_have_one_without() -> None:
    lanes = plan_lanes(BOTH, GPUS, 2, through_celery=True)
    assert lanes == [Lane(("compute",), GPUS[0], 1), Lane(("compute",), GPUS[1], 1), Lane(("inspect",), None, 2)]
    assert plan_lanes(BOTH, GPUS, 2, through_celery=False) == lanes
    assert plan_lanes(("inspect",), GPUS, 2, through_celery=True) == [Lane(("inspect",), None, 2)]
    assert plan_lanes(("compute",), GPUS[:1], 2, through_celery=True) == [Lane(("compute",), GPUS[0], 1)]


def test_without_a_gpu_no_queue_waits_behind_another() -> None:
    apart = [Lane(("inspect",), None, 1), Lane(("compute",), None, 1)]
    assert plan_lanes(BOTH, [], 1, through_celery=True) == apart
    assert plan_lanes(BOTH, [], 1, through_celery=False) == [Lane(BOTH, None, 1)]


def test_a_lane_sees_its_own_device_alone() -> None:
    gpu, cpu = Lane(("compute",), GPUS[1], 1).companion(), Lane(("inspect",), None, 2).companion()
    assert gpu.arguments == ("worker", "--queues", "compute", "--concurrency", "1", "--gpus", "1")
    assert gpu.environment == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
    assert cpu.arguments[-2:] == ("--gpus", "none")
    assert cpu.environment == {"CUDA_VISIBLE_DEVICES": ""}


def test_a_queue_that_does_not_exist_is_refused(settings: Settings) -> None:
    with pytest.raises(InvalidInputError, match="no queue 'gpu'") as caught:
        run_workers(
            settings,
            Database("postgresql://nowhere/x"),
            queues="gpu",
            gpus="none",
            concurrency=1,
            stop_signals=lambda: pytest.fail("it started"),
        )
    assert caught.value.hint == "The queues are: inspect, compute."
