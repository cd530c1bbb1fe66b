"""The process's side of the pipe: tells the supervisor where the job is."""

import json
import os
import time
from collections.abc import Callable, Sequence

_PAUSE_S = 0.1


class Reporter:
    """Passes on (stage, done, total), at most ten times a second, with the share of the whole job."""

    def __init__(self, pipe: int, stages: Sequence[str], on_stage: Callable[[str], None]) -> None:
        self._pipe = pipe
        self._on_stage = on_stage
        self._stages = list(stages)
        self._stage = ""
        self._sent_at = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` steps of `stage` are finished."""
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._sent_at < _PAUSE_S:
            return
        if stage != self._stage:
            self._on_stage(stage)
        self._stage, self._sent_at = stage, now
        message = {"stage": stage, "done": done, "total": total}
        if stage in self._stages and total > 0:
            message["fraction"] = (self._stages.index(stage) + done / total) / len(self._stages)
        os.write(self._pipe, json.dumps(message).encode() + b"\n")
