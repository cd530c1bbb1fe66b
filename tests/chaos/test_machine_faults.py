"""What a machine does to its worker: a full disk, a clock that is wrong."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.jobs.orm import JobRow
from app.jobs.service import JobService
from app.projects.keys import ensure_project
from tests.chaos.conftest import submit_inspections
from tests.chaos.deployment import Deployment, until
from tests.chaos.invariants import examine

HOUR_S = 3600.0
IMAGES = 20_000
"""As an upload and as a canonical dataset they have more than 300 kB."""
ROOM_FOR_INPUTS = 600_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with four MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.fail(
            f"A small disk is needed ({mounted.stderr.strip()}): run this test as root, where mount is allowed."
        )
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_delays_or_fails_a_job_and_a_retry_ends_it_well(deployment: Deployment, small_disk: Path) -> None:
    """First not even the inputs fit; then the output does not; then there is room."""
    (small_disk / "work").mkdir()
    deployment.settings.work_dir.symlink_to(small_disk / "work")
    ballast = small_disk / "ballast"
    (job_id,) = submit_inspections(deployment, "large", images=IMAGES)
    fill(ballast)
    deployment.worker()
    until(lambda: "job.worker_fault" in deployment.log, "the worker finds that it cannot work")
    os.truncate(ballast, ballast.stat().st_size - ROOM_FOR_INPUTS)
    verdict = examine(deployment)
    assert (verdict.ends, error_of(deployment, job_id)["code"]) == ({"failed": 1}, "disk_full")
    assert list(small_disk.rglob("*.safetensors")) == []
    ballast.unlink()
    with deployment.database.transaction() as session:
        JobService(session, ensure_project(session, "default"), max_attempts=1).retry(job_id)
    assert examine(deployment).ends == {"succeeded": 1}


def test_a_limit_on_the_size_of_files_fails_a_job_and_says_so(deployment: Deployment) -> None:
    deployment.extra["NEUSEMSLICE_JOB_FILE_BYTES"] = "100000"
    (job_id,) = submit_inspections(deployment, "large", images=IMAGES)
    deployment.worker()
    assert examine(deployment).ends == {"failed": 1}
    error = error_of(deployment, job_id)
    assert error["code"] == "file_too_large"
    assert "NEUSEMSLICE_JOB_FILE_BYTES" in error["hint"]


def test_no_worker_trusts_its_own_clock(deployment: Deployment) -> None:
    """One is an hour ahead, one an hour behind: either would take the other's jobs away, or never let go of its own."""
    deployment.extra["NEUSEMSLICE_LEASE_S"] = "20"
    submit_inspections(deployment, *"abcd")
    deployment.worker(clock_s=HOUR_S)
    deployment.worker(clock_s=-HOUR_S)
    verdict = examine(deployment)
    assert (verdict.ends, verdict.attempts) == ({"succeeded": 4}, 4)


def fill(ballast: Path) -> None:
    """Make a file that takes up all that is free."""
    with ballast.open("wb") as file:
        file.write(bytes(shutil.disk_usage(ballast.parent).free))


def error_of(deployment: Deployment, job_id: str) -> dict:
    with deployment.database.transaction() as session:
        error = session.get_one(JobRow, job_id).error
    assert error is not None
    return error
