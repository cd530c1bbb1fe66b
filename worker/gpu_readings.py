"""What NVML says about the GPUs that this worker's jobs may use. Without a driver, or without the package: none."""

import os
from functools import cache
from types import ModuleType
from typing import Any

import structlog

log = structlog.get_logger(__name__)


def read_gpus() -> list[dict[str, Any]]:
    """Each GPU's `uuid`, `name`, `memory_used_bytes`, `memory_total_bytes`, and `utilization` (0 to 1, or None)."""
    nvml = _nvml()
    if nvml is None:
        return []
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
        chosen = visible(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))
        return [_read(nvml, handle, uuid) for handle, uuid in zip(handles, uuids, strict=True) if uuid in chosen]
    except nvml.NVMLError as error:
        log.warning("worker.gpu_unreadable", error=str(error))
        return []


def visible(uuids: list[str], choice: str | None) -> list[str]:
    """Those that CUDA_VISIBLE_DEVICES leaves, by number or by the beginning of their UUID; all if it is not set.

    As CUDA does it, the first entry that names none ends the list.
    """
    if choice is None:
        return uuids
    chosen = []
    for entry in choice.split(","):
        name = entry.strip()
        if name.isdecimal() and int(name) < len(uuids):
            chosen.append(uuids[int(name)])
            continue
        found = [uuid for uuid in uuids if name.startswith("GPU-") and uuid.startswith(name)]
        if len(found) != 1:
            break
        chosen += found
    return chosen


def _read(nvml: ModuleType, handle: Any, uuid: str) -> dict[str, Any]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "uuid": uuid,
        "name": nvml.nvmlDeviceGetName(handle),
        "memory_used_bytes": memory.used,
        "memory_total_bytes": memory.total,
        "utilization": _utilization(nvml, handle),
    }


def _utilization(nvml: ModuleType, handle: Any) -> float | None:
    try:
        return float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    except nvml.NVMLError_NotSupported:
        return None


@cache
def _nvml() -> ModuleType | None:
    """NVML, ready to be asked; it stays so for the process's life."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    module: ModuleType = pynvml
    return module
