"""What `/readyz` finds out, at most once a second however many ask."""

import asyncio
import time
from typing import Literal

from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from app.api.probes import Probe
from app.api.services import Services
from app.artifacts.room import StoreState, look_at_store
from app.jobs.specs import QUEUES
from app.jobs.workers import live_workers
from app.migrations import SchemaState, schema_state

KEPT_S = 1.0
PATIENCE_S = 2.0

DatabaseState = SchemaState | Literal["unreachable", "no answer"]


class Readiness(BaseModel):
    """Whether this process can take work, and what of the service is missing.

    `ready` and `degraded` take work. Degraded: jobs are kept, but wait for a worker, a queue or space on the disk, or
    clients hear of changes late. `unavailable` and `draining` do not.
    """

    status: Literal["ready", "degraded", "unavailable", "draining"]
    database: DatabaseState
    store: StoreState | Literal["no answer"]
    queue: Literal["ok", "unreachable"]
    listener: Literal["ok", "disconnected"]
    workers: dict[str, int]
    """How many jobs of each queue can run at once; empty if that is not known."""

    @property
    def takes_work(self) -> bool:
        """Whether requests should be sent here."""
        return self.status in {"ready", "degraded"}


class ReadinessCheck:
    """Asks everything at once, each with its own patience; who asks meanwhile gets the same answer."""

    def __init__(self, services: Services) -> None:
        settings, store = services.settings, services.store
        folder = settings.blob_dir if settings.store_url is None else settings.upload_dir
        room = settings.min_free_bytes
        self._services = services
        self._database = Probe("database", self._look_at_database, patience_s=PATIENCE_S)
        self._store = Probe("store", lambda: look_at_store(store, folder, min_free_bytes=room), patience_s=PATIENCE_S)
        self._queue = Probe("queue", services.queue.is_available, patience_s=PATIENCE_S)
        self._lock = asyncio.Lock()
        self._found: Readiness | None = None
        self._found_at = float("-inf")

    async def report(self) -> Readiness:
        """The state now, or up to a second ago."""
        async with self._lock:
            if self._found is None or time.monotonic() - self._found_at > KEPT_S:
                self._found = await self._ask()
                self._found_at = time.monotonic()
            found = self._found
        if self._services.listener.is_ending:
            return found.model_copy(update={"status": "draining"})
        return found

    async def _ask(self) -> Readiness:
        seen, store, queue = await asyncio.gather(self._database.ask(), self._store.ask(), self._queue.ask())
        database, workers = seen or ("no answer", {})
        found = Readiness(
            status="ready",
            database=database,
            store=store or "no answer",
            queue="ok" if queue else "unreachable",
            listener="ok" if self._services.listener.is_connected else "disconnected",
            workers=workers,
        )
        if database not in {"ok", "newer"} or found.store in {"not writable", "no answer"}:
            return found.model_copy(update={"status": "unavailable"})
        is_whole = (found.store, found.queue, found.listener) == ("ok", "ok", "ok")
        if is_whole and all(workers.get(queue, 0) > 0 for queue in QUEUES):
            return found
        return found.model_copy(update={"status": "degraded"})

    def _look_at_database(self) -> tuple[DatabaseState, dict[str, int]]:
        try:
            state = schema_state(self._services.database)
            if state == "not migrated":
                return state, {}
            with self._services.database.transaction() as session:
                return state, {queue: live_workers(session, queue) for queue in QUEUES}
        except SQLAlchemyError:
            return "unreachable", {}
