"""One analysis over several workers, with real processes and a real Postgres; one of them is shot."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from sqlalchemy import select, update

from app.artifacts.catalog import Catalog, NewAsset, accept
from app.artifacts.orm import ArtifactRow, DatasetRow, ModelRow
from app.artifacts.store import LocalBlobStore
from app.db import Database
from app.jobs import shards
from app.jobs.orm import AnalysisRow, JobRow
from app.jobs.service import JobService
from app.jobs.specs import SliceSpec, SlicingParams
from app.jobs.status import JobStatus
from app.projects.keys import ensure_project
from app.settings import Settings
from neusemslice import trace
from neusemslice.checkpoint import save_checkpoint
from neusemslice.data import import_dataset
from tests.claims import claim_job
from tests.neusemslice.networks import mlp
from worker.supervisor import Supervisor
from worker.warm_start import WarmStart

PATIENCE_S = 400.0


@pytest.fixture
def store(settings: Settings) -> LocalBlobStore:
    return LocalBlobStore(settings.blob_dir)


@pytest.fixture
def ids(database: Database, store: LocalBlobStore, tmp_path: Path) -> dict[str, str]:
    """A ready model and dataset; a sample at a time takes a process long enough to be shot."""
    model = trace(mlp(), torch.zeros(1, 6))
    save_checkpoint(model.graph_module, model.input_shape, tmp_path / "model")
    random = np.random.default_rng(0)
    inputs, labels = random.normal(size=(900, 6)).astype(np.float32), random.integers(0, 3, 900)
    np.savez(tmp_path / "a.npz", x_train=inputs, y_train=labels, x_test=inputs[:30], y_test=labels[:30])
    facts = import_dataset(tmp_path / "a.npz", tmp_path / "dataset").to_dict()
    with database.transaction() as session:
        project = ensure_project(session, "default")
        found = {"project": project}
        for name, kind, known in (
            ("model", ModelRow, {"categories": 3, "input_shape": [6]}),
            ("dataset", DatasetRow, facts),
        ):
            blob = store.put_file(tmp_path / name)
            row = Catalog(session, project).add(kind, NewAsset(name, {}, {}), blob)
            accept(row, digest=blob.digest, size_bytes=blob.size_bytes, facts=known)
            found[f"{name}_id"] = row.id
        return found


@pytest.fixture
def submit(database: Database, ids: dict[str, str]) -> Callable[..., str]:
    def do(**values: Any) -> str:
        slicing = SlicingParams(metric="avg", samples_per_category=50)
        both = {name: ids[name] for name in ("model_id", "dataset_id")}
        spec = SliceSpec(**{"kind": "slice", **both, "batch_size": 1, "slicing": slicing, **values})
        with database.transaction() as session:
            return JobService(session, ids["project"], max_attempts=3).submit(spec).id

    return do


@pytest.fixture(scope="module")
def launch() -> Iterator[WarmStart]:
    with WarmStart(1) as launch:
        assert launch.wait_until_ready(PATIENCE_S)
        yield launch


@pytest.fixture
def workers(settings: Settings, database: Database, store: LocalBlobStore, launch: WarmStart) -> Callable[..., None]:
    """Lets so many workers work until a condition holds."""

    calm = settings.model_copy(update={"job_threads": 1})

    def work(until: Callable[[], bool], count: int = 2) -> None:
        supervisors = [Supervisor(calm, database, store, launch=launch) for _ in range(count)]
        stopping = threading.Event()

        def lane(supervisor: Supervisor) -> None:
            while not stopping.is_set():
                if not supervisor.run_next("compute"):
                    stopping.wait(0.05)

        threads = [threading.Thread(target=lane, args=(supervisor,)) for supervisor in supervisors]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + PATIENCE_S
        try:
            while not until() and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            stopping.set()
            for supervisor in supervisors:
                supervisor.drain()
            for thread in threads:
                thread.join()
        assert until()

    return work


def read(database: Database, job_id: str) -> JobRow:
    with database.transaction() as session:
        return session.get_one(JobRow, job_id)


def shards_of(database: Database, job_id: str) -> list[JobRow]:
    with database.transaction() as session:
        query = select(JobRow).where(JobRow.parent_job_id == job_id).order_by(JobRow.shard_index)
        return list(session.scalars(query))


def has_ended(database: Database, job_id: str) -> Callable[[], bool]:
    return lambda: JobStatus(read(database, job_id).status).is_terminal


def slice_of(database: Database, job_id: str) -> str:
    """The digest of the slice that the job left."""
    with database.transaction() as session:
        query = select(ArtifactRow.digest).where(ArtifactRow.job_id == job_id, ArtifactRow.name == "slice.safetensors")
        return session.scalars(query).one()


def forget_analyses(database: Database) -> None:
    with database.transaction() as session:
        for row in session.scalars(select(AnalysisRow)):
            session.delete(row)


def runners_of(settings: Settings, job_id: str) -> list[int]:
    """Processes that work in the job's folder."""
    folder = str(settings.work_dir.resolve() / job_id)
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [process.pid] if any(folder in part for part in process.cmdline()) else []
    return found


def test_a_lost_shard_is_redone_alone_and_the_slice_is_the_unsharded_one(
    settings: Settings, database: Database, submit: Callable[..., str], workers: Callable[..., None]
) -> None:
    sharded = submit(shards=3)
    shot: list[str] = []

    def shoot() -> bool:
        for shard in shards_of(database, sharded)[:1]:
            runners = [] if shot else runners_of(settings, shard.id)
            for pid in runners:
                os.kill(pid, signal.SIGKILL)
            shot.extend([shard.id] if runners else [])
        return has_ended(database, sharded)()

    workers(shoot)
    job, parts = read(database, sharded), shards_of(database, sharded)
    assert (job.status, job.error) == ("succeeded", None)
    assert [shard.id for shard in parts[:1]] == shot
    assert [shard.attempt for shard in parts] == [2, 1, 1]
    assert {shard.status for shard in parts} == {"succeeded"}
    with database.transaction() as session:
        assert session.scalars(select(AnalysisRow.key).where(AnalysisRow.key.contains(":"))).all() == []
        service = JobService(session, job.project_id, max_attempts=3)
        assert [listed.id for listed in service.list(before=None, limit=10)] == [sharded]
    forget_analyses(database)
    whole = submit()
    workers(has_ended(database, whole))
    assert read(database, whole).result == job.result
    assert slice_of(database, whole) == slice_of(database, sharded)
    assert shards_of(database, whole) == []


def test_a_shard_that_fails_fails_its_job_and_a_retry_redoes_only_what_lacks(
    database: Database, submit: Callable[..., str], workers: Callable[..., None]
) -> None:
    job_id = submit(shards=2, batch_size=50)
    with database.transaction() as session:
        held = claim_job(session, job_id, owner="me", lease_s=30)
        assert shards.split(session, held, max_attempts=3)
    second = shards_of(database, job_id)[1]
    with database.transaction() as session:
        spec = second.spec | {"limit_per_category": "nonsense"}
        session.execute(update(JobRow).where(JobRow.id == second.id).values(spec=spec))
    workers(has_ended(database, job_id), 1)
    job = read(database, job_id)
    assert (job.status, job.queue) == ("failed", "compute")
    assert job.error == shards_of(database, job_id)[1].error
    with database.transaction() as session:
        session.execute(update(JobRow).where(JobRow.id == second.id).values(spec=second.spec))
        JobService(session, job.project_id, max_attempts=3).retry(job_id)
    workers(has_ended(database, job_id))
    assert read(database, job_id).status == "succeeded"
    first, second = shards_of(database, job_id)
    assert (first.attempt, second.attempt) == (1, 2)


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ({"max_runtime_s": 0.01}, "max_runtime_exceeded"),
        ({"deadline": JobRow.created_at}, "deadline_passed"),
    ],
)
def test_a_shard_runs_no_longer_than_its_job_may(
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    submit: Callable[..., str],
    workers: Callable[..., None],
    limit: dict[str, Any],
    code: str,
) -> None:
    """Nobody ends what is overdue here, so that it is the shards' own limits that end them, and with them their job."""
    job_id = submit(shards=2, max_runtime_s=3600.0, deadline=datetime.now(UTC) + timedelta(hours=1))
    assert Supervisor(settings, database, store).run_next("compute")
    given = {(shard.max_runtime_s, shard.deadline) for shard in shards_of(database, job_id)}
    assert given == {(3600.0, read(database, job_id).deadline)}
    with database.transaction() as session:
        session.execute(update(JobRow).values(**limit))
    workers(has_ended(database, job_id))
    job, parts = read(database, job_id), shards_of(database, job_id)
    assert (job.status, (job.error or {})["code"]) == ("failed", code)
    assert "failed" in {shard.status for shard in parts}
    assert "succeeded" not in {shard.status for shard in parts}
    assert [runners_of(settings, shard.id) for shard in parts] == [[], []]


def test_a_job_whose_deadline_has_passed_is_not_split(
    settings: Settings, database: Database, store: LocalBlobStore, submit: Callable[..., str]
) -> None:
    job_id = submit(shards=2, deadline=datetime.now(UTC) + timedelta(hours=1))
    with database.transaction() as session:
        session.execute(update(JobRow).values(deadline=JobRow.created_at))
    assert Supervisor(settings, database, store).run_next("compute")
    job = read(database, job_id)
    assert (job.status, job.queue, (job.error or {})["code"]) == ("failed", "compute", "deadline_passed")
    assert shards_of(database, job_id) == []
