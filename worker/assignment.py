"""What a kind's function gets to work with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from neusemslice.progress import OnProgress

SpecT = TypeVar("SpecT")


@dataclass(frozen=True)
class Assignment(Generic[SpecT]):
    """One order: the spec, input files by name, a folder for outputs, and the two callbacks."""

    spec: SpecT
    files: Mapping[str, Path]
    values: Mapping[str, Any]
    outputs: Path
    threads: int
    on_progress: OnProgress
    should_stop: Callable[[], bool]
