"""What crashes left behind is removed, and nothing else."""

import os
import time
from collections.abc import Callable

from app.db import Database
from app.jobs import leases
from app.settings import Settings
from tests.app.jobs.conftest import project, spec, submit  # noqa: F401 fixtures
from worker.sweeper import LEFTOVER_S, UPLOAD_MAX_S, sweep


def test_old_folders_of_jobs_that_do_not_run_go(
    settings: Settings,
    database: Database,
    submit: Callable[[], str],  # noqa: F811
) -> None:
    running, queued, fresh = submit(), submit(), submit()
    with database.transaction() as session:
        assert leases.claim(session, running, owner="me", lease_s=60) is not None
    for name in (running, queued, fresh, "unknown"):
        (settings.work_dir / name / "attempt-1").mkdir(parents=True)
    incoming = settings.blob_dir / "incoming"
    incoming.mkdir(parents=True)
    for name in ("old", "new"):
        (incoming / name).write_bytes(b"half")
    for path in (settings.work_dir / running, settings.work_dir / queued, settings.work_dir / "unknown"):
        os.utime(path, (0, time.time() - LEFTOVER_S - 1))
    os.utime(incoming / "old", (0, time.time() - UPLOAD_MAX_S - 1))
    sweep(settings, database)
    assert {path.name for path in settings.work_dir.iterdir()} == {running, fresh}
    assert {path.name for path in incoming.iterdir()} == {"new"}
