"""Attempts end by the strictest of their limits, each with its own code, and leave what they printed."""

import os
import signal
import threading
import time

import pytest
from sqlalchemy import text

from app.db import Database
from app.jobs.logs import log_of
from app.jobs.orm import JobRow
from tests.worker.test_supervisor import inspection, slow_inspection, store, supervisor  # noqa: F401 fixtures
from worker.supervisor import Supervisor


def change(database: Database, job_id: str, assignment: str) -> None:
    with database.transaction() as session:
        session.execute(text(f"UPDATE jobs SET {assignment} WHERE id = :id"), {"id": job_id})


@pytest.mark.parametrize(
    ("assignment", "code"),
    [
        ("max_runtime_s = 0.5", "max_runtime_exceeded"),
        ("deadline = now() + interval '0.5 s', max_runtime_s = 100", "deadline_passed"),
        ("deadline = now() - interval '1 s'", "deadline_passed"),
    ],
)
def test_each_limit_has_its_code(
    database: Database,
    supervisor: Supervisor,  # noqa: F811
    slow_inspection: tuple[str, str],  # noqa: F811
    assignment: str,
    code: str,
) -> None:
    job_id, _ = slow_inspection
    change(database, job_id, assignment)
    assert supervisor.run_next("inspect")
    with database.transaction() as session:
        job = session.get_one(JobRow, job_id)
        assert (job.status, (job.error or {})["code"]) == ("failed", code)
        if "- interval" not in assignment:
            assert log_of(session, job_id, 1).attempt == 1


def test_a_killed_process_leaves_what_it_printed(
    database: Database,
    supervisor: Supervisor,  # noqa: F811
    slow_inspection: tuple[str, str],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from worker.child import Child

    started: list[Child] = []
    real = Child.start
    monkeypatch.setattr(Child, "start", lambda *rest, **more: started.append(real(*rest, **more)) or started[-1])
    job_id, _ = slow_inspection
    working = threading.Thread(target=supervisor.run_next, args=("inspect",))
    working.start()
    while not started:
        time.sleep(0.01)
    (folder,) = (supervisor._settings.work_dir / job_id).iterdir()
    with (folder / "log.txt").open("ab") as file:
        file.write(b"last words\n")
    os.killpg(started[0].pid, signal.SIGKILL)
    working.join()
    with database.transaction() as session:
        assert b"last words" in log_of(session, job_id, 1).content
