"""How the benchmarks take times."""

import statistics
import time
from collections.abc import Callable


def seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """Median time of one call, after one that is not counted."""
    action()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
