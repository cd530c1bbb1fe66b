"""What crashes left behind is removed, and nothing else."""

import os
import time
from collections.abc import Callable

from sqlalchemy import func, update

from app.db import Database
from app.jobs.orm import JobRow
from app.jobs.service import JobService
from app.settings import Settings
from tests.app.jobs.conftest import project, spec, submit  # noqa: F401 fixtures
from tests.claims import claim_job
from worker.sweeper import LEFTOVER_S, RESUMABLE_KEPT, UPLOAD_MAX_S, sweep


def test_old_folders_of_jobs_that_have_ended_go(
    settings: Settings,
    database: Database,
    project: str,  # noqa: F811
    submit: Callable[[], str],  # noqa: F811
) -> None:
    running, queued, cancelled, failed, forgotten, fresh = (submit() for _ in range(6))
    with database.transaction() as session:
        claim_job(session, running, owner="me", lease_s=60)
        for job_id in (cancelled, fresh):
            JobService(session, project, max_attempts=1).cancel(job_id)
        for job_id, ago in ((failed, RESUMABLE_KEPT / 2), (forgotten, RESUMABLE_KEPT * 2)):
            query = update(JobRow).where(JobRow.id == job_id)
            session.execute(query.values(status="failed", finished_at=func.clock_timestamp() - ago))
    old = (running, queued, cancelled, failed, forgotten, "unknown")
    for name in (*old, fresh):
        (settings.work_dir / name / "attempt-1").mkdir(parents=True)
    incoming = settings.blob_dir / "incoming"
    incoming.mkdir(parents=True)
    for name in ("old", "new"):
        (incoming / name).write_bytes(b"half")
    for name in old:
        os.utime(settings.work_dir / name, (0, time.time() - LEFTOVER_S - 1))
    os.utime(incoming / "old", (0, time.time() - UPLOAD_MAX_S - 1))
    sweep(settings, database)
    assert {path.name for path in settings.work_dir.iterdir()} == {running, queued, failed, fresh}
    assert {path.name for path in incoming.iterdir()} == {"new"}
