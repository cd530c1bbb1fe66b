"""What has to happen from time to time: reap, end what is overdue, relay, announce again, collect garbage, tidy up."""

import time
from threading import Event

import structlog

from app.db import Database
from app.jobs.deadlines import end_overdue
from app.jobs.garbage import collect_garbage
from app.jobs.queue import JobQueue, reannounce_stale, relay_outbox
from app.jobs.reaper import reap
from app.jobs.tally import fold
from app.jobs.workers import forget_silent
from app.projects.audit import forget_old_changes
from app.settings import Settings
from app.webhooks.delivering import forget_old
from worker.heartbeat_file import HeartbeatFile
from worker.sweeper import sweep

log = structlog.get_logger(__name__)

FORGOTTEN_S = 3600.0
"""What a dead worker reported is shown no more, but can still be looked up for this long."""


def maintain(
    settings: Settings, database: Database, queue: JobQueue, stopping: Event, heartbeat: HeartbeatFile | None = None
) -> None:
    """Look every `poll_s` until `stopping`. Any number of processes may do this at once.

    The heartbeat tells that the rounds go on, whatever becomes of each.
    """
    collected = time.monotonic()
    beat_s = max(settings.beat_s, settings.poll_s)
    _beat(heartbeat, beat_s)
    while not stopping.wait(settings.poll_s):
        _beat(heartbeat, beat_s)
        try:
            reap(database)
            end_overdue(database)
            reannounce_stale(database, queue, older_than_s=settings.republish_after_s)
            relay_outbox(database, queue)
            sweep(settings, database)
            forget_old(database)
            with database.transaction() as session:
                fold(session)
                forget_silent(session, older_than_s=FORGOTTEN_S)
                forget_old_changes(session, older_than_s=settings.audit_kept_s)
            if time.monotonic() - collected > settings.gc_every_s:
                collected = time.monotonic()
                _beat(heartbeat, settings.gc_every_s)  # it may take until the next one is due
                collect_garbage(settings, database)
        except Exception:
            log.exception("maintenance.failed")  # whatever it was, the next round must come


def _beat(heartbeat: HeartbeatFile | None, beat_s: float) -> None:
    if heartbeat is None:
        return
    try:
        heartbeat.touch(beat_s)
    except OSError as error:
        log.warning("maintenance.beat_failed", error=str(error))
