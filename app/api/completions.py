"""Uploads being verified in the background: while their parts arrive, and, once they have, whole. A few at a time, and
each once, however often it is asked for.
"""

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock

import structlog

from app.artifacts.completing import CompletionStoppedError, complete
from app.artifacts.running_digest import RunningDigest
from app.artifacts.staging import Staging
from app.artifacts.store import BlobStore
from app.db import Database
from app.errors import ConflictError

log = structlog.get_logger(__name__)

AT_ONCE = 4
REMEMBERED = 64
"""Uploads whose running digests are kept; another one is read from its beginning again."""


class Completions:
    """What this process is verifying. What another one verifies counts as under way."""

    def __init__(self, database: Database, store: BlobStore, staging: Staging) -> None:
        self._database = database
        self._store = store
        self._staging = staging
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="completing")
        self._running: dict[str, Future[None]] = {}
        self._digests: dict[str, RunningDigest] = {}
        self._lock = Lock()
        self._stopping = Event()

    def part_arrived(self, upload_id: str) -> None:
        """Read on in the upload, in the background."""
        self._threads.submit(self._read_on, upload_id)

    async def wait(self, upload_id: str, timeout_s: float) -> None:
        """Verify and store the upload; return when that is done, or after `timeout_s` while it goes on.

        Raises:
            ConflictError: parts are missing again.
            DigestMismatchError: it is not the file that was declared.
        """
        with self._lock:
            future = self._running.get(upload_id)
            if future is None or future.done():
                future = self._threads.submit(self._complete, upload_id)
                self._running[upload_id] = future
                future.add_done_callback(lambda done: self._forget(upload_id, done))
        waiter = asyncio.wrap_future(future)
        done, _ = await asyncio.wait({waiter}, timeout=timeout_s)
        for ended in done:
            ended.result()

    def close(self) -> None:
        """Stop; what was under way is done again when it is asked for again."""
        self._stopping.set()
        self._threads.shutdown(cancel_futures=True)

    def _read_on(self, upload_id: str) -> None:
        try:
            self._digest(upload_id).advance(self._database, self._staging, upload_id, self._stopping.is_set)
        except Exception:
            log.exception("upload.reading_on_failed", upload_id=upload_id)  # its completion reads the rest

    def _complete(self, upload_id: str) -> None:
        try:
            running = self._digest(upload_id)
            complete(self._database, self._store, self._staging, upload_id, running, self._stopping.is_set)
        except CompletionStoppedError:
            return
        except ConflictError as error:
            if error.code != "upload_busy":
                raise

    def _digest(self, upload_id: str) -> RunningDigest:
        with self._lock:
            digest = self._digests.pop(upload_id) if upload_id in self._digests else RunningDigest()
            self._digests[upload_id] = digest
            if len(self._digests) > REMEMBERED:
                del self._digests[next(iter(self._digests))]
            return digest

    def _forget(self, upload_id: str, done: Future[None]) -> None:
        with self._lock:
            if self._running.get(upload_id) is done:
                del self._running[upload_id]
                self._digests.pop(upload_id, None)
