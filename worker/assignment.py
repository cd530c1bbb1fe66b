"""What a kind's function gets to work with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from neusemslice.progress import OnProgress

SpecT = TypeVar("SpecT")


@dataclass(frozen=True)
class Assignment(Generic[SpecT]):
    """One order: the spec, input files by name, a folder for outputs, and the two callbacks.

    Files that an attempt leaves in `checkpoints` are there again for the next attempt of the same job, after any crash.
    Names are those of plain files (`[a-z0-9_.-]`); each is written beside its place, with a name that ends in `.tmp`,
    and renamed. What lies there may come from any moment of an earlier attempt.
    """

    spec: SpecT
    files: Mapping[str, Path]
    values: Mapping[str, Any]
    outputs: Path
    checkpoints: Path
    threads: int
    on_progress: OnProgress
    should_stop: Callable[[], bool]
