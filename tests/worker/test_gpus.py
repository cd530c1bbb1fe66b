"""GPUs as a driver lists them, one machine after the other: whole, divided, hidden, absent, broken."""

import os
import sys
from pathlib import Path

import pytest

from app.errors import InvalidInputError
from worker import gpus
from worker.gpus import choose_gpus, find_gpus

WHOLE = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-00000000-aaaa-4000-8000-000000000000)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-bbbb-4000-8000-000000000000)
"""
DIVIDED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-00000000-aaaa-4000-8000-000000000000)
  MIG 3g.20gb     Device  0: (UUID: MIG-0a0a0a0a-1111-5000-8000-000000000000)
  MIG 3g.20gb     Device  1: (UUID: MIG-0b0b0b0b-2222-5000-8000-000000000000)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-11111111-bbbb-4000-8000-000000000000)
"""


def nvidia_smi(folder: Path, output: str, *, exit_code: int = 0) -> str:
    """A program of that name, in a folder to be put on the path."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint({output!r}, end='')\nsys.exit({exit_code})\n")
    program.chmod(0o755)
    return str(folder)


def names(wanted: str, **environment: str) -> list[str]:
    return [gpu.name for gpu in choose_gpus(wanted, environment)]


def test_whole_gpus_are_chosen_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path, WHOLE))
    assert [gpu.uuid[:12] for gpu in find_gpus()] == ["GPU-00000000", "GPU-11111111"]
    assert names("all") == ["gpu:0", "gpu:1"]
    assert names("1") == ["gpu:1"]
    assert names("none") == []


def test_a_divided_gpu_counts_as_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path, DIVIDED))
    assert names("all") == ["gpu:0/0", "gpu:0/1", "gpu:1"]
    assert names("0") == ["gpu:0/0", "gpu:0/1"]
    assert names("0", CUDA_VISIBLE_DEVICES="MIG-0b0b0b0b-2222-5000-8000-000000000000") == ["gpu:0/1"]


@pytest.mark.parametrize(
    ("visible", "left"), [("1", ["gpu:1"]), ("GPU-0000", ["gpu:0"]), ("", []), ("1, 0", ["gpu:0", "gpu:1"])]
)
def test_what_is_hidden_is_never_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, left: list[str]
) -> None:
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path, WHOLE))
    assert names("all", CUDA_VISIBLE_DEVICES=visible) == left


@pytest.mark.parametrize(("wanted", "words"), [("0,2", "no GPU 2 here; there are: 0, 1"), ("first", "not understood")])
def test_what_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, words: str) -> None:
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path, WHOLE))
    with pytest.raises(InvalidInputError, match=words):
        choose_gpus(wanted, {})


def test_without_a_driver_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpus, "_PROC", tmp_path)
    assert find_gpus() == []


@pytest.mark.parametrize("is_broken", [True, False])
def test_the_kernel_is_asked_where_nvidia_smi_is_missing_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_broken: bool
) -> None:
    path = nvidia_smi(tmp_path, "Failed to initialize NVML", exit_code=255) if is_broken else os.devnull
    monkeypatch.setenv("PATH", path)
    monkeypatch.setattr(gpus, "_PROC", tmp_path / "proc")
    for bus, uuid in (("0000:41:00.0", "GPU-b"), ("0000:01:00.0", "GPU-a")):
        information = tmp_path / "proc" / bus / "information"
        information.parent.mkdir(parents=True)
        information.write_text(f"Model: \t\t NVIDIA L4\nIRQ:   \t\t 30\nGPU UUID: \t {uuid}\nDevice Minor: \t 0\n")
    assert [(gpu.name, gpu.uuid) for gpu in find_gpus()] == [("gpu:0", "GPU-a"), ("gpu:1", "GPU-b")]
