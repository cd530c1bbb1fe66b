"""Tidies up after crashes: keeps logs that were left, removes folders of ended jobs, half-written blobs, old keys."""

import shutil
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from sqlalchemy import ColumnElement, and_, delete, func, or_, select

from app.db import Database
from app.jobs.orm import IdempotencyRow, JobRow
from app.jobs.status import JobStatus
from app.settings import Settings
from worker.left_logs import keep_left_logs

KEYS_KEPT = timedelta(days=7)
LEFTOVER_S = 3600.0
RESUMABLE_KEPT = timedelta(days=1)
UPLOAD_MAX_S = 24 * 3600.0


def sweep(settings: Settings, database: Database) -> None:
    """Look through this machine's folders and the idempotency keys."""
    sweep_folders(settings, database)
    with database.transaction() as session:
        session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < func.clock_timestamp() - KEYS_KEPT))


def sweep_folders(settings: Settings, database: Database) -> None:
    """Keep the logs that dead supervisors left on this machine, and remove what nobody comes back for."""
    ages = _ages_s(settings.work_dir)
    with database.transaction() as session:
        kept = keep_left_logs(session, ages)
    for path in kept:
        path.unlink(missing_ok=True)
    folders = {path.name: path for path, age in ages.items() if age > LEFTOVER_S}
    with database.transaction() as session:
        for job_id in session.scalars(select(JobRow.id).where(JobRow.id.in_(folders), _may_go_on())):
            del folders[job_id]
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (settings.blob_dir, settings.cache_dir):
        for path, age in _ages_s(folder / "incoming").items():
            if age > UPLOAD_MAX_S:
                path.unlink(missing_ok=True)


def _may_go_on() -> ColumnElement[bool]:
    """Under way, or failed so recently that a client may still have it go on from its checkpoints."""
    under_way = JobRow.status.in_((JobStatus.QUEUED.value, JobStatus.RUNNING.value))
    recent = JobRow.finished_at > func.clock_timestamp() - RESUMABLE_KEPT
    return or_(under_way, and_(JobRow.status == JobStatus.FAILED.value, recent))


def _ages_s(folder: Path) -> dict[Path, float]:
    """For each entry, how long nobody has touched it; a new attempt touches its job's folder."""
    ages = {}
    if folder.is_dir():
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # whoever worked there has ended
                ages[path] = time.time() - path.stat().st_mtime
    return ages
