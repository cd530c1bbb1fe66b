"""`neusemslice worker`: one worker for each GPU, and one without for what needs none."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.db import Database
from app.errors import InvalidInputError
from app.jobs.specs import INSPECT, QUEUES
from app.settings import Settings
from neusemslice_cli.companions import Companion, keep_running
from worker.gpus import VISIBLE, Gpu, choose_gpus
from worker.stop_signals import StopSignals


@dataclass(frozen=True)
class Lane:
    """One worker process: the queues that it takes jobs from, where, and how many of each at once."""

    queues: tuple[str, ...]
    gpu: Gpu | None
    concurrency: int

    def companion(self) -> Companion:
        """The lane as a process of its own, which sees its GPU alone."""
        arguments = ["worker", "--queues", ",".join(self.queues), "--concurrency", str(self.concurrency)]
        where = "none" if self.gpu is None else str(self.gpu.index)
        return Companion((*arguments, "--gpus", where), self.environment())

    def environment(self) -> dict[str, str]:
        """What keeps the jobs' processes on their device."""
        return {VISIBLE: "" if self.gpu is None else self.gpu.uuid}


def plan_lanes(queues: Sequence[str], gpus: Sequence[Gpu], concurrency: int, *, through_celery: bool) -> list[Lane]:
    """A lane for each GPU, one job at a time, and one for inspections, which never wait behind the others.

    Without a GPU, a Celery worker takes one queue; the local one works on each of its queues side by side anyway.
    """
    if not gpus and not through_celery:
        return [Lane(tuple(queues), None, concurrency)]
    heavy = tuple(queue for queue in queues if queue != INSPECT)
    lanes = [Lane(heavy, gpu, 1) for gpu in gpus] if heavy else []
    light = [queue for queue in queues if not lanes or queue == INSPECT]
    return lanes + [Lane((queue,), None, concurrency) for queue in light]


def run_workers(
    settings: Settings,
    database: Database,
    *,
    queues: str,
    gpus: str,
    concurrency: int,
    stop_signals: Callable[[], StopSignals],
) -> None:
    """Work until the signal to stop (Celery handles its own): in this process if one lane is all, else in one for each.

    Raises:
        InvalidInputError: there is no such queue or GPU.
    """
    through_celery = settings.redis_url is not None
    lanes = plan_lanes(_parse(queues), choose_gpus(gpus, os.environ), concurrency, through_celery=through_celery)
    if len(lanes) > 1:
        stop = stop_signals()
        with keep_running(settings, database, [lane.companion() for lane in lanes], stop):
            stop.stopping.wait()
        return
    (lane,) = lanes
    os.environ.update(lane.environment())
    settings = settings.model_copy(update={"device": "cpu" if lane.gpu is None else lane.gpu.name})
    if through_celery:
        from worker.celery_app import run_celery

        run_celery(settings, database.url, lane.queues, concurrency=lane.concurrency)
    else:
        from worker.dispatcher import dispatch

        dispatch(settings, database, stop_signals(), queues=lane.queues, concurrency=lane.concurrency)


def _parse(queues: str) -> list[str]:
    names = list(dict.fromkeys(queues.split(",")))
    unknown = [name for name in names if name not in QUEUES]
    if unknown:
        raise InvalidInputError(f"There is no queue {unknown[0]!r}.", hint=f"The queues are: {', '.join(QUEUES)}.")
    return names
