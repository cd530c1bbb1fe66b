"""How long calls tell their caller where they are, and learn that they should stop. Free of torch."""

from collections.abc import Callable
from dataclasses import dataclass

from neusemslice.errors import StoppedError

OnProgress = Callable[[str, int, int], None]
ShouldStop = Callable[[], bool]


@dataclass(frozen=True)
class Progress:
    """A caller's two callbacks, either of which may be absent."""

    on_progress: OnProgress | None = None
    should_stop: ShouldStop | None = None

    def report(self, stage: str, done: int, total: int) -> None:
        """Announce that `done` of `total` steps of `stage` are finished.

        Raises:
            StoppedError: should_stop() returned true.
        """
        if self.on_progress is not None:
            self.on_progress(stage, done, total)
        if self.should_stop is not None and self.should_stop():
            raise StoppedError(f"stopped during {stage!r}, after {done} of {total} steps.")
