"""What a job's process is told, and what it says at its end: the half of its folder that both sides read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ORDER = "order.json"
OUTCOME = "outputs/outcome.json"
LOG = "log.txt"
CHECKPOINTS = "checkpoints"
_MEDIA_TYPES = {
    ".safetensors": "application/octet-stream",
    ".json": "application/json",
    ".csv": "text/csv",
    ".html": "text/html",
}


class Limits(BaseModel):
    """What the job's process may use."""

    memory_bytes: int
    file_bytes: int
    threads: int
    open_files: int = 1024
    cpu_s: int | None = None
    sandbox: Literal["required", "best"] = "best"


class Order(BaseModel):
    """What the job's process is told; it knows nothing else."""

    spec: dict[str, Any]
    files: dict[str, str]
    values: dict[str, Any]
    limits: Limits
    log_context: dict[str, Any] = Field(default_factory=dict)
    """What every line of its log says: which job, attempt and request."""


class OutputFile(BaseModel):
    """A file that the job's process has written into the outputs folder."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9_]+\.(safetensors|json|csv|html)$")
    role: Literal["artifact", "model", "dataset", "analysis"] = "artifact"
    facts: dict[str, Any] = Field(default_factory=dict)

    @property
    def media_type(self) -> str:
        """By the name's ending."""
        return _MEDIA_TYPES[Path(self.name).suffix]


class Outcome(BaseModel):
    """What the job's process says at its end: an error or a result, and files either way."""

    model_config = ConfigDict(extra="forbid")

    error: dict[str, Any] | None = None
    result: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    outputs: list[OutputFile] = Field(default_factory=list)


def write_outcome(root: Path, outcome: Mapping[str, Any]) -> None:
    """Leave the outcome for the supervisor, in one piece or not at all."""
    temporary = root / f"{OUTCOME}.tmp"
    temporary.write_text(json.dumps(plain(outcome), allow_nan=False))
    temporary.replace(root / OUTCOME)


def plain(value: Any) -> Any:
    """A value as JSON and Postgres can keep it: numbers that are not finite become null, NULs are replaced."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case str():
            return value.replace("\x00", "\N{REPLACEMENT CHARACTER}")
        case Mapping():
            return {plain(name): plain(item) for name, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    return value
