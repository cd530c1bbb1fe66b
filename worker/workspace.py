"""The folder of one attempt: inputs and the order go in, outputs and the outcome come out."""

import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.artifacts.store import BlobStore
from app.jobs.claims import Claim
from worker.checkpoints import has_checkpoints, take_over
from worker.inputs import Inputs
from worker.order import CHECKPOINTS, LOG, ORDER, OUTCOME, Limits, Order, Outcome, plain
from worker.sandbox import shields_inputs

_OUTCOME_MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Workspace:
    """One attempt's folder."""

    root: Path

    @classmethod
    def create(cls, work_dir: Path, held: Claim, *, max_checkpoint_bytes: int) -> "Workspace":
        """A fresh folder with the checkpoints of earlier attempts; what else they left is removed."""
        job_dir = work_dir.resolve() / held.job_id
        workspace = cls(job_dir / f"attempt-{held.fence}")
        for folder in ("inputs", "outputs", "tmp", CHECKPOINTS):
            (workspace.root / folder).mkdir(parents=True)
        earlier = sorted((path for path in job_dir.iterdir() if fence_of(path) < held.fence), key=fence_of)
        take_over([path / CHECKPOINTS for path in earlier], workspace.checkpoints, max_bytes=max_checkpoint_bytes)
        for path in earlier:
            shutil.rmtree(path, ignore_errors=True)
        return workspace

    @property
    def checkpoints(self) -> Path:
        """What the next attempt will find again."""
        return self.root / CHECKPOINTS

    def prepare(self, held: Claim, inputs: Inputs, store: BlobStore, limits: Limits) -> None:
        """Put the inputs and the order into the folder."""
        files = {name: f"inputs/{name}" for name in inputs.files}
        for name, digest in inputs.files.items():
            _provide(store.path(digest), self.root / files[name])
        order = Order(spec=held.spec, files=files, values=inputs.values, limits=limits, log_context=log_context(held))
        (self.root / ORDER).write_text(order.model_dump_json())

    def read_outcome(self) -> Outcome | None:
        """What the process said, or None if it said nothing that can be understood."""
        path = self.root / OUTCOME
        try:
            if path.is_symlink() or path.stat().st_size > _OUTCOME_MAX_BYTES:
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

    def remove(self, *, keep_checkpoints: bool) -> None:
        """Delete the folder, and the job's if nothing else is in it; but for the checkpoints if they are to be kept."""
        if keep_checkpoints and has_checkpoints(self.checkpoints):
            for path in self.root.iterdir():
                if path.name == CHECKPOINTS:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            return
        shutil.rmtree(self.root, ignore_errors=True)
        if self.root.parent.is_dir() and not any(self.root.parent.iterdir()):
            self.root.parent.rmdir()


def fence_of(attempt: Path) -> int:
    """The number in an attempt's name; 0 for what is no attempt."""
    found = re.fullmatch(r"attempt-(\d+)", attempt.name)
    return int(found[1]) if found else 0


def log_context(held: Claim) -> dict[str, Any]:
    """What the logs of the supervisor and of the job's process say about this attempt in every line."""
    context = {"job_id": held.job_id, "kind": held.kind, "attempt": held.attempt}
    if held.origin.request_id is not None:
        context["request_id"] = held.origin.request_id
    if held.origin.traceparent is not None:
        context["trace_id"] = held.origin.traceparent.split("-")[1]
    return context


def _provide(source: Path, place: Path) -> None:
    """A stored file as an input: without copying, where the job's process cannot change what it may read."""
    if shields_inputs():
        with suppress(OSError):  # store and work folder are on two file systems
            os.link(source, place)
            return
    shutil.copyfile(source, place)
