"""Which GPUs this machine has, asked of the driver: torch is not loaded, and CUDA not touched."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from app.errors import InvalidInputError

log = structlog.get_logger(__name__)

_GPU = re.compile(r"^GPU (?P<index>\d+): .*\(UUID: (?P<uuid>GPU-[^)]+)\)")
_PART = re.compile(r"^\s+MIG .*\bDevice\s+(?P<part>\d+): \(UUID: (?P<uuid>MIG-[^)]+)\)")
_PROC = Path("/proc/driver/nvidia/gpus")
_UUID_IN_PROC = re.compile(r"^GPU UUID:\s*(GPU-\S+)", re.MULTILINE)
_PATIENCE_S = 30.0
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Gpu:
    """A GPU, or one part of a GPU that is divided (MIG)."""

    index: int
    uuid: str
    part: int | None = None

    @property
    def name(self) -> str:
        """What the job's transitions call it."""
        return f"gpu:{self.index}" if self.part is None else f"gpu:{self.index}/{self.part}"


def choose_gpus(wanted: str, environment: Mapping[str, str]) -> list[Gpu]:
    """The GPUs that `--gpus` names: `all`, `none`, or numbers such as `0,1`. Never others than CUDA_VISIBLE_DEVICES.

    Raises:
        InvalidInputError: `wanted` is none of these, or names a GPU that is not there.
    """
    if wanted == "none":
        return []
    found = _visible(find_gpus(), environment.get(VISIBLE))
    if wanted == "all":
        return found
    if re.fullmatch(r"\d+(,\d+)*", wanted) is None:
        raise InvalidInputError(f"--gpus {wanted!r} is not understood.", hint="Give all, none, or numbers such as 0,1.")
    indices = [int(number) for number in wanted.split(",")]
    missing = sorted(set(indices) - {gpu.index for gpu in found})
    if missing:
        there = ", ".join(str(index) for index in dict.fromkeys(gpu.index for gpu in found)) or "none"
        raise InvalidInputError(
            f"There is no GPU {missing[0]} here; there are: {there}.",
            hint="`nvidia-smi -L` lists them; CUDA_VISIBLE_DEVICES may hide some.",
        )
    return [gpu for gpu in found if gpu.index in indices]


def find_gpus() -> list[Gpu]:
    """Every GPU of this machine, and in place of a divided one its parts; none if there is no driver."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_PATIENCE_S, check=True)
    except FileNotFoundError:
        return _from_proc()
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("gpus.nvidia_smi_failed", error=str(error))
        return _from_proc()
    return _parse(listed.stdout)


def _parse(text: str) -> list[Gpu]:
    whole: dict[int, Gpu] = {}
    parts: list[Gpu] = []
    for line in text.splitlines():
        if found := _GPU.match(line):
            index = int(found["index"])
            whole[index] = Gpu(index, found["uuid"])
        elif whole and (found := _PART.match(line)):
            parts.append(Gpu(next(reversed(whole)), found["uuid"], int(found["part"])))
    divided = {part.index for part in parts}
    undivided = [gpu for gpu in whole.values() if gpu.index not in divided]
    return sorted([*undivided, *parts], key=lambda gpu: (gpu.index, gpu.part or 0))


def _from_proc() -> list[Gpu]:
    """By the order of their buses, as nvidia-smi counts."""
    texts = [path.read_text() for path in sorted(_PROC.glob("*/information"))]
    uuids = [match[1] for text in texts if (match := _UUID_IN_PROC.search(text))]
    return [Gpu(index, uuid) for index, uuid in enumerate(uuids)]


def _visible(found: Sequence[Gpu], visible: str | None) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves; as in CUDA itself, numbers count, and UUIDs may be cut short."""
    if visible is None:
        return list(found)
    shown = [item.strip() for item in visible.split(",") if item.strip()]
    return [gpu for gpu in found if any(_is_named(gpu, item) for item in shown)]


def _is_named(gpu: Gpu, item: str) -> bool:
    return int(item) == gpu.index if item.isdecimal() else gpu.uuid.startswith(item)
