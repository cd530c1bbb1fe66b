"""Waiting for a change without polling: one LISTEN connection wakes every long-poll and event stream."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psycopg
import structlog
from starlette.concurrency import run_in_threadpool

from app.db import NOTICE_A_DEAD_PEER, Database
from app.jobs.events import CHANGES

log = structlog.get_logger(__name__)
T = TypeVar("T")

RECHECK_S = 5.0
"""Waiters look again this often even if no notification comes: the listening connection may be down."""


class ChangeListener:
    """Rings for everyone who watches a resource when Postgres says that it changed."""

    def __init__(self, database: Database) -> None:
        self._dsn = database.dsn
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self.is_connected = False
        """Whether notifications come in; without them, waiters look every few seconds."""
        self.is_ending = False
        """Whether this process drains: nobody waits any more."""

    async def run(self) -> None:
        """Listen until cancelled, reconnecting when the database goes away."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._dsn, autocommit=True, **NOTICE_A_DEAD_PEER
                ) as connection:
                    await connection.execute(f"LISTEN {CHANGES}")
                    self.is_connected = True
                    self._ring(*self._watchers)  # whatever happened while nobody listened
                    async for notification in connection.notifies():
                        self._ring(notification.payload)
            except psycopg.OperationalError as error:
                log.warning("changes.disconnected", error=str(error))
                self.is_connected = False
                await asyncio.sleep(1.0)

    def end_waits(self) -> None:
        """Answer everybody who waits with what there is now, and let nobody wait any more."""
        self.is_ending = True
        self._ring(*self._watchers)

    def _ring(self, *resource_ids: str) -> None:
        for resource_id in resource_ids:
            for watcher in self._watchers.get(resource_id, ()):
                watcher.set()

    @contextmanager
    def watch(self, resource_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the resource changes."""
        changed = asyncio.Event()
        self._watchers[resource_id].add(changed)
        try:
            yield changed
        finally:
            self._watchers[resource_id].discard(changed)
            if not self._watchers[resource_id]:
                del self._watchers[resource_id]

    async def until(self, resource_id: str, look: Callable[[], T], done: Callable[[T], bool], timeout_s: float) -> T:
        """What `look` returns once `done` accepts it, or after `timeout_s`."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_s
        with self.watch(resource_id) as changed:
            while True:
                changed.clear()
                value = await run_in_threadpool(look)
                remaining = deadline - clock()
                if remaining <= 0 or done(value) or self.is_ending:
                    return value
                await wait_for(changed, min(remaining, RECHECK_S))


async def wait_for(changed: asyncio.Event, timeout_s: float) -> bool:
    """Return when the event is set (True), or after `timeout_s` (False)."""
    try:
        await asyncio.wait_for(changed.wait(), timeout_s)
    except TimeoutError:
        return False
    return True
