"""When the job's process began each of its stages: lines of a file, written as they begin, read by the supervisor."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

STAGES = "outputs/stages.jsonl"
_AT_MOST = 1000
"""A job that goes from stage to stage for ever does not fill the disk."""
_LINE_MAX_BYTES = 300


@dataclass(frozen=True)
class Stage:
    """A stage by its name, in nanoseconds since the epoch."""

    name: str
    began_ns: int
    ended_ns: int


class StageLog:
    """The process's side: notes each stage as it begins."""

    def __init__(self, root: Path) -> None:
        self._path = root / STAGES
        self._count = 0

    def begin(self, stage: str) -> None:
        """From now on the job is at `stage`."""
        log.info("process.stage", stage=stage)
        self._count += 1
        if self._count <= _AT_MOST:
            with self._path.open("a") as file:
                file.write(json.dumps([stage[:100], time.time_ns()]) + "\n")


def read_stages(root: Path, ended_ns: int) -> list[Stage]:
    """The supervisor's side: the stages of a process that ended at `ended_ns`, as far as they can be understood."""
    try:
        descriptor = os.open(root / STAGES, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            lines = file.read(_AT_MOST * _LINE_MAX_BYTES).splitlines()
    except OSError:
        return []
    starts = [start for line in lines if (start := _parse(line)) is not None and start[1] <= ended_ns]
    following = [*starts[1:], ("", ended_ns)]
    return [Stage(name, began, max(began, end)) for (name, began), (_, end) in zip(starts, following, strict=False)]


def _parse(line: bytes) -> tuple[str, int] | None:
    try:
        match json.loads(line):
            case [str(name), int(began_ns)]:
                return name, began_ns
    except ValueError:
        return None
    return None
