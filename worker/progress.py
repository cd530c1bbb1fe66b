"""From the process's reports to the progress that clients see: bounded in number, never moving back in an attempt."""

import time
from typing import Any

from app.db import JsonObject

_STEP = 0.01
_PAUSE_S = 60.0


class ProgressMeter:
    """Turns (stage, done, total, fraction) into what the job's row shows."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._shown: JsonObject | None = None
        self._shown_at = 0.0
        self._latest: JsonObject | None = None
        self._fraction = 0.0

    def update(self, message: dict[str, Any]) -> None:
        """Take in a report of the process; ignore what has not the right shape."""
        stage, done, total, fraction = (message.get(name) for name in ("stage", "done", "total", "fraction"))
        if not isinstance(stage, str) or not isinstance(done, int) or not isinstance(total, int):
            return
        if isinstance(fraction, int | float):
            self._fraction = max(self._fraction, min(float(fraction), 1.0))
        elapsed = time.monotonic() - self._started
        eta_s = round(elapsed * (1 - self._fraction) / self._fraction, 1) if self._fraction > _STEP else None
        shown = {"stage": stage[:100], "done": done, "total": total}
        self._latest = shown | {"fraction": round(self._fraction, 4), "eta_s": eta_s}

    @property
    def stage(self) -> str:
        """The last that was reported; empty before the first."""
        return "" if self._latest is None else str(self._latest["stage"])

    def take_news(self) -> JsonObject | None:
        """The progress to show if it is worth a write: another stage, a hundredth further on, or any after a minute."""
        latest, shown = self._latest, self._shown
        if latest is None or latest is shown:
            return None
        now = time.monotonic()
        if shown is not None and latest["stage"] == shown["stage"]:
            little = latest["fraction"] - shown["fraction"] < _STEP
            if little and now - self._shown_at < _PAUSE_S:
                return None
        self._shown, self._shown_at = latest, now
        return latest
