"""The folder of one attempt: inputs and the order go in, outputs and the outcome come out."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.artifacts.store import BlobStore
from app.jobs.leases import Claim
from worker.inputs import Inputs

ORDER = "order.json"
OUTCOME = "outcome.json"
LOG = "log.txt"
_MEDIA_TYPES = {
    ".safetensors": "application/octet-stream",
    ".json": "application/json",
    ".csv": "text/csv",
    ".html": "text/html",
}
_OUTCOME_MAX_BYTES = 64 * 1024 * 1024


class Limits(BaseModel):
    """What the job's process may use."""

    memory_bytes: int
    file_bytes: int
    threads: int


class Order(BaseModel):
    """What the job's process is told; it knows nothing else."""

    spec: dict[str, Any]
    files: dict[str, str]
    values: dict[str, Any]
    limits: Limits


class OutputFile(BaseModel):
    """A file that the job's process has written into the outputs folder."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9_]+\.(safetensors|json|csv|html)$")
    role: Literal["artifact", "model", "dataset"] = "artifact"
    facts: dict[str, Any] = Field(default_factory=dict)

    @property
    def media_type(self) -> str:
        """By the name's ending."""
        return _MEDIA_TYPES[Path(self.name).suffix]


class Outcome(BaseModel):
    """What the job's process says at its end: an error, or a result and its files."""

    model_config = ConfigDict(extra="forbid")

    error: dict[str, Any] | None = None
    result: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    outputs: list[OutputFile] = Field(default_factory=list)


@dataclass(frozen=True)
class Workspace:
    """One attempt's folder."""

    root: Path

    @classmethod
    def create(cls, work_dir: Path, held: Claim) -> "Workspace":
        """A fresh folder; what earlier attempts of the job left is removed."""
        job_dir = work_dir.resolve() / held.job_id
        shutil.rmtree(job_dir, ignore_errors=True)
        root = job_dir / f"attempt-{held.fence}"
        for folder in (root / "inputs", root / "outputs", root / "tmp"):
            folder.mkdir(parents=True)
        return cls(root)

    def prepare(self, held: Claim, inputs: Inputs, store: BlobStore, limits: Limits) -> None:
        """Put the inputs and the order into the folder."""
        files = {name: f"inputs/{name}" for name in inputs.files}
        for name, digest in inputs.files.items():
            _link(store.path(digest), self.root / files[name])
        order = Order(spec=held.spec, files=files, values=inputs.values, limits=limits)
        (self.root / ORDER).write_text(order.model_dump_json())

    def read_outcome(self) -> Outcome | None:
        """What the process said, or None if it said nothing that can be understood."""
        path = self.root / OUTCOME
        try:
            if path.stat().st_size > _OUTCOME_MAX_BYTES:
                return None
            outcome = Outcome.model_validate(plain(json.loads(path.read_bytes())))
        except (FileNotFoundError, ValueError):
            return None
        files = [self.output(file.name) for file in outcome.outputs]
        return outcome if all(file.is_file() and not file.is_symlink() for file in files) else None

    def output(self, name: str) -> Path:
        """An output file's place."""
        return self.root / "outputs" / name

    def log_tail(self, size: int = 4000) -> str:
        """The end of what the process printed."""
        try:
            with (self.root / LOG).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - size))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def remove(self) -> None:
        """Delete the folder, and the job's if nothing else is in it."""
        shutil.rmtree(self.root, ignore_errors=True)
        if self.root.parent.is_dir() and not any(self.root.parent.iterdir()):
            self.root.parent.rmdir()


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


def _link(source: Path, place: Path) -> None:
    """Without copying where store and work folder share a file system."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)
