"""Looking at something that may hang, without hanging."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Probe(Generic[T]):
    """One look at a time, in a thread of its own: one that hangs is waited for, never joined by a second."""

    def __init__(self, name: str, look: Callable[[], T], *, patience_s: float) -> None:
        self._name = name
        self._look = look
        self._patience_s = patience_s
        self._under_way: Future[T | None] | None = None

    async def ask(self) -> T | None:
        """What the look found, or None if it failed, or gave no answer within the probe's patience."""
        if self._under_way is None or self._under_way.done():
            self._under_way = Future()
            Thread(target=self._run, args=(self._under_way,), daemon=True).start()
        answer = asyncio.wrap_future(self._under_way)
        done, _ = await asyncio.wait([answer], timeout=self._patience_s)
        if not done:
            log.warning("probe.no_answer", probe=self._name, patience_s=self._patience_s)
            return None
        return answer.result()

    def _run(self, answer: Future[T | None]) -> None:
        found = None
        try:
            found = self._look()
        except Exception as error:
            log.warning("probe.failed", probe=self._name, error=repr(error))
        answer.set_result(found)
