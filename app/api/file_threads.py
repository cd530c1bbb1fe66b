"""Threads for what writes to a disk or asks an object store, apart from those that ask the database.

However slow these are, short requests find a thread; of those no more run at once than connections are kept.
"""

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")

AT_ONCE = 40


class FileThreads:
    """One process's threads for files."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(AT_ONCE)

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """What `function(*arguments)` returns, once a thread has been free for it."""
        return await to_thread.run_sync(function, *arguments, limiter=self._limiter)
