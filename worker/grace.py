"""How long a running job may go on once its worker drains."""

import time
from pathlib import Path
from typing import Protocol

from worker.checkpoints import marks


class Flag(Protocol):
    """An event of this process, or one shared by several."""

    def is_set(self) -> bool:
        """Whether it is raised."""

    def set(self) -> None:
        """Raise it."""


class Grace:
    """Until it leaves a checkpoint to go on from, but no longer than `grace_s`: what it does then is not lost.

    A job that was claimed by a worker which drained already gets none.
    """

    def __init__(self, draining: Flag, at_once: Flag, checkpoints: Path, *, grace_s: float) -> None:
        self._draining = draining
        self._at_once = at_once
        self._checkpoints = checkpoints
        self._grace_s = grace_s
        self._ends_at = float("-inf") if draining.is_set() else None
        self._marks: frozenset[tuple[str, int, int]] = frozenset()

    def is_over(self) -> bool:
        """Whether the job has to stop now."""
        if not self._draining.is_set():
            return False
        if self._ends_at is None:
            self._ends_at = time.monotonic() + self._grace_s
            self._marks = marks(self._checkpoints)
        if self._at_once.is_set() or time.monotonic() >= self._ends_at:
            return True
        return marks(self._checkpoints) != self._marks
