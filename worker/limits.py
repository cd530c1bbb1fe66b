"""How much of the machine a job's process may take, whatever its files tell it to do."""

import resource

from worker.order import Limits


def set_limits(limits: Limits) -> None:
    """Bound memory, file size, processor time and open files of this process; it never leaves a core dump."""
    for kind, value in (
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, limits.cpu_s),
    ):
        if value is None:
            continue
        _, hard = resource.getrlimit(kind)
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bounded, bounded))
