"""The job's process: its limits, and what it says when it fails."""

import subprocess
import sys
from pathlib import Path

import pytest

from neusemslice.errors import ArchitectureError, CheckpointError, ConfigError, UnsupportedModelError
from worker.runner import describe, make_room, versions


@pytest.mark.parametrize(
    ("error", "code", "place"),
    [
        (
            UnsupportedModelError("joins two branches.", node="layer1.0.add"),
            "unsupported_model",
            ("node", "layer1.0.add"),
        ),
        (
            ArchitectureError("unknown layer.", where="kwargs.layers[2]"),
            "invalid_architecture",
            ("where", "kwargs.layers[2]"),
        ),
        (ConfigError("too small.", field="seed"), "invalid_config", ("field", "seed")),
    ],
)
def test_a_typed_error_keeps_its_place(error: Exception, code: str, place: tuple[str, str]) -> None:
    described = describe(error, "slice", 2**30)
    assert described["code"] == code
    assert described[place[0]] == place[1]
    assert described["retryable"] is False


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_has_a_name_and_a_remedy(error: Exception) -> None:
    described = describe(error, "slice", 2**30)
    assert (described["code"], described["retryable"]) == ("out_of_memory", True)
    assert "batch_size" in described["hint"]


@pytest.mark.parametrize(
    ("words", "code", "retryable"),
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", "disk_full", True),
        ("[Errno 122] Disk quota exceeded", "disk_full", True),
        ("[Errno 27] File too large", "file_too_large", False),
    ],
)
def test_what_cannot_be_written_has_a_name_and_a_remedy(words: str, code: str, retryable: bool) -> None:
    wrapped = CheckpointError("could not be written.")
    wrapped.__cause__ = RuntimeError(words)
    for error in (OSError(words), RuntimeError(words), wrapped):
        described = describe(error, "slice", 2**30)
        assert (described["code"], described["retryable"]) == (code, retryable)
        assert "NEUSEMSLICE_" in described["hint"]


def test_a_full_disk_gets_room_for_the_outcome(tmp_path: Path) -> None:
    for name in ("outputs/half.safetensors", "outputs/left.safetensors", "tmp/scratch"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("bytes")
    make_room(tmp_path, keep={"left.safetensors"})
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["left.safetensors"]


@pytest.mark.parametrize(("kind", "noun"), [("inspect_model", "network"), ("inspect_dataset", "dataset")])
def test_an_upload_that_does_not_fit_the_memory_is_too_large(kind: str, noun: str) -> None:
    error = UnsupportedModelError("cannot be run: DefaultCPUAllocator: can't allocate memory.", node="conv")
    error.__cause__ = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    described = describe(error, kind, 3 * 2**29)
    assert (described["code"], described["retryable"]) == ("out_of_memory", False)
    assert described["detail"] == f"The {noun} is too large for the 1.5 GiB of memory that an inspection may use."
    assert "NEUSEMSLICE_JOB_MEMORY_BYTES" in described["hint"]
    assert "node" not in described


def test_words_about_memory_in_a_refusal_are_not_mistaken() -> None:
    error = UnsupportedModelError("The layer 'out of memory' is unknown.", node="out of memory")
    assert describe(error, "inspect_model", 2**30)["code"] == "unsupported_model"


def test_an_unforeseen_error_does_not_show_its_text() -> None:
    described = describe(KeyError("/secret/path"), "slice", 2**30)
    assert described["code"] == "internal_error"
    assert "secret" not in str(described)


def test_versions_name_what_computed_the_result() -> None:
    assert set(versions()) == {"neusemslice", "torch", "numpy", "python"}


def test_the_limits_hold(tmp_path: Path) -> None:
    code = """
import sys
from worker.limits import set_limits
from worker.order import Limits
set_limits(Limits(memory_bytes=400_000_000, file_bytes=1_000_000, threads=1))
try:
    bytearray(1_000_000_000)
except MemoryError:
    print("memory")
try:
    with open("big", "wb") as file:
        file.write(bytes(2_000_000))
except OSError as error:
    print("file", error.errno)
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert run.stdout.splitlines() == ["memory", "file 27"]
