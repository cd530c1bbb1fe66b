"""Removes what crashes left behind: work folders of jobs that have ended, half-written blobs, old idempotency keys."""

import shutil
import time
from datetime import timedelta
from pathlib import Path

from sqlalchemy import ColumnElement, and_, delete, func, or_, select

from app.db import Database
from app.jobs.orm import IdempotencyRow, JobRow
from app.jobs.status import JobStatus
from app.settings import Settings

KEYS_KEPT = timedelta(days=7)
LEFTOVER_S = 3600.0
RESUMABLE_KEPT = timedelta(days=1)
UPLOAD_MAX_S = 24 * 3600.0


def sweep(settings: Settings, database: Database) -> None:
    """Look through this machine's folders and the idempotency keys."""
    folders = {path.name: path for path in _older_than(settings.work_dir, LEFTOVER_S)}
    with database.transaction() as session:
        for job_id in session.scalars(select(JobRow.id).where(JobRow.id.in_(folders), _may_go_on())):
            del folders[job_id]
        session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < func.clock_timestamp() - KEYS_KEPT))
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (settings.blob_dir, settings.cache_dir):
        for path in _older_than(folder / "incoming", UPLOAD_MAX_S):
            path.unlink(missing_ok=True)


def _may_go_on() -> ColumnElement[bool]:
    """Under way, or failed so recently that a client may still have it go on from its checkpoints."""
    under_way = JobRow.status.in_((JobStatus.QUEUED.value, JobStatus.RUNNING.value))
    recent = JobRow.finished_at > func.clock_timestamp() - RESUMABLE_KEPT
    return or_(under_way, and_(JobRow.status == JobStatus.FAILED.value, recent))


def _older_than(folder: Path, seconds: float) -> list[Path]:
    """Entries that nobody has touched for so long; a new attempt touches its job's folder."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if time.time() - path.stat().st_mtime > seconds]
