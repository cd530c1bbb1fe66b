"""Threads that send webhook messages, beside whatever else the process does: a slow receiver holds up nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import structlog

from app.db import Database
from app.settings import Settings
from app.webhooks.delivering import deliver_next
from app.webhooks.sending import Sender

log = structlog.get_logger(__name__)

COURIERS = 4
LAST_MESSAGE_S = 5.0
"""So long the end of the process waits for messages under way; one that is cut off is sent again."""


@contextmanager
def couriers(settings: Settings, database: Database, stopping: Event) -> Iterator[None]:
    """Send what is due until `stopping`, for as long as the block runs."""
    sender = Sender(settings)
    threads = [Thread(target=_send, args=(settings, database, sender, stopping), daemon=True) for _ in range(COURIERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join(LAST_MESSAGE_S)


def _send(settings: Settings, database: Database, sender: Sender, stopping: Event) -> None:
    while not stopping.is_set():
        try:
            busy = deliver_next(settings, database, sender)
        except Exception:
            log.exception("courier.failed")  # the delivery is due again later
            busy = False
        if not busy:
            stopping.wait(settings.poll_s)
