"""A file that a living process keeps fresh. A health check that reads it needs neither database nor network.

So an outage of Postgres makes no orchestrator restart workers, which would cost the jobs that they work on.
"""

import json
import os
import socket
import time
from pathlib import Path
from typing import Literal

from app.errors import ServiceError
from app.jobs.workers import BEATS_MISSED

Role = Literal["worker", "relay"]


class HeartbeatFile:
    """`heartbeats/ROLE/HOST-PID` under the data folder; says when it was written, by the machine's monotonic clock."""

    def __init__(self, data_dir: Path, role: Role) -> None:
        self._path = _folder(data_dir, role) / f"{socket.gethostname()}-{os.getpid()}"
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def touch(self, beat_s: float) -> None:
        """Alive; the next sign comes in `beat_s`."""
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        temporary.write_text(json.dumps({"at": time.monotonic(), "beat_s": beat_s}))
        temporary.replace(self._path)

    def remove(self) -> None:
        """No longer."""
        self._path.unlink(missing_ok=True)


def check_heartbeat(data_dir: Path, role: Role) -> None:
    """Find a worker or relay of this machine that lives.

    Raises:
        ServiceError: there is none.
    """
    ages = [_age_in_beats(path) for path in _folder(data_dir, role).glob(f"{socket.gethostname()}-*[0-9]")]
    if not ages:
        raise ServiceError(f"No {role} runs on this machine with the data folder {data_dir}.", hint="Start one.")
    if min(ages) > BEATS_MISSED:
        raise ServiceError(
            f"The {role} of this machine has been silent for {min(ages):.0f} of its beats.",
            hint="It hangs: look at its log, then restart it.",
        )


def _folder(data_dir: Path, role: Role) -> Path:
    return data_dir / "heartbeats" / role


def _age_in_beats(path: Path) -> float:
    """Infinite for what was left from before the machine started, or cannot be read."""
    try:
        said = json.loads(path.read_text())
        age_s = time.monotonic() - said["at"]
        return float(age_s / said["beat_s"]) if age_s >= 0 else float("inf")
    except (OSError, ValueError, KeyError, TypeError):
        return float("inf")
