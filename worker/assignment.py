"""What a kind's function gets to work with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from neusemslice.progress import OnProgress

SpecT_co = TypeVar("SpecT_co", covariant=True)


@dataclass(frozen=True)
class Assignment(Generic[SpecT_co]):
    """One order: the spec, input files by name, a folder for outputs, and the two callbacks.

    Files that an attempt leaves in `checkpoints` are there again for the next attempt of the same job, after any crash.
    They are plain files without subfolders, written whole or not at all (`safetensors_file.replacing`). Where one does
    not fit, raise a CheckpointError: the job then begins anew without any.
    """

    spec: SpecT_co
    files: Mapping[str, Path]
    values: Mapping[str, Any]
    outputs: Path
    checkpoints: Path
    threads: int
    on_progress: OnProgress
    should_stop: Callable[[], bool]
    left: list[dict[str, Any]] = field(default_factory=list)

    def leave(self, name: str, *, role: str = "artifact") -> None:
        """Hand on a file from `outputs` whatever becomes of the job: it is kept even if the job fails later."""
        self.left.append({"name": name, "role": role})
