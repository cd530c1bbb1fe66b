"""One job from claim to commit, with a real process and a real Postgres. Inspections of datasets need no torch."""

import io
import os
import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from app.artifacts.catalog import Catalog, NewAsset, accept
from app.artifacts.orm import DatasetRow, ModelRow
from app.artifacts.store import LocalBlobStore
from app.db import Database
from app.jobs.orm import JobRow
from app.jobs.problems import timed_out
from app.jobs.reaper import reap
from app.jobs.service import JobService
from app.jobs.specs import InspectDatasetSpec, InspectModelSpec, SliceSpec
from app.projects.keys import ensure_project
from app.settings import Settings
from tests.claims import claim_job
from worker.child import Child
from worker.inputs import collect_inputs
from worker.order import Limits
from worker.supervisor import Supervisor
from worker.workspace import Workspace


@pytest.fixture
def store(settings: Settings) -> LocalBlobStore:
    return LocalBlobStore(settings.blob_dir)


@pytest.fixture
def supervisor(settings: Settings, database: Database, store: LocalBlobStore) -> Supervisor:
    return Supervisor(settings, database, store)


@pytest.fixture
def inspection(database: Database, store: LocalBlobStore) -> tuple[str, str]:
    """The ids of a queued inspection and of its dataset."""
    stream = io.BytesIO()
    np.savez(stream, x_train=np.zeros((8, 4, 4), dtype=np.uint8), y_train=np.arange(8) % 2)
    stream.seek(0)
    blob = store.put_stream(stream, max_bytes=10**6)
    with database.transaction() as session:
        project = ensure_project(session, "default")
        dataset = Catalog(session, project).add(DatasetRow, NewAsset("d", {"format": "auto"}, {}), blob)
        spec = InspectDatasetSpec(kind="inspect_dataset", dataset_id=dataset.id)
        return JobService(session, project, max_attempts=3).inspect(spec).id, dataset.id


@pytest.fixture
def slow_inspection(database: Database, store: LocalBlobStore) -> tuple[str, str]:
    """The ids of a queued inspection that would take minutes, and of its model: a small upload with large values."""
    weights = {"c.weight": torch.ones(4, 1, 1, 1), "c.bias": torch.zeros(4)}
    blob = store.put_stream(io.BytesIO(save(weights)), max_bytes=10**6)
    nodes = [{"name": "c", "type": "Conv2d", "kwargs": {"in_channels": 1, "out_channels": 4, "kernel_size": 1}}]
    nodes += [{"name": f"r{number}", "type": "Softplus", "kwargs": {}} for number in range(3000)]
    for before, node in pairwise([{"name": "input"}, *nodes]):
        node["inputs"] = [before["name"]]
    described = {
        "builder": "graph",
        "input_shape": [1, 1024, 1024],
        "kwargs": {"nodes": nodes, "output": nodes[-1]["name"]},
    }
    with database.transaction() as session:
        project = ensure_project(session, "default")
        model = Catalog(session, project).add(ModelRow, NewAsset("m", described, {}), blob)
        spec = InspectModelSpec(kind="inspect_model", model_id=model.id)
        return JobService(session, project, max_attempts=3).inspect(spec).id, model.id


def read(database: Database, inspection: tuple[str, str]) -> tuple[JobRow, DatasetRow]:
    with database.transaction() as session:
        return session.get_one(JobRow, inspection[0]), session.get_one(DatasetRow, inspection[1])


def test_a_job_is_worked_on_once_and_leaves_no_folder(
    supervisor: Supervisor, database: Database, settings: Settings, inspection: tuple[str, str]
) -> None:
    assert supervisor.run_next("compute") is False
    assert supervisor.run_next("inspect") is True
    assert supervisor.run_next("inspect") is False
    job, dataset = read(database, inspection)
    assert (job.status, job.attempt, dataset.status) == ("succeeded", 1, "ready")
    assert dataset.facts is not None
    assert dataset.facts["input_shape"] == [1, 4, 4]
    assert list(settings.work_dir.iterdir()) == []


def test_a_worker_that_cannot_work_gives_the_job_back_at_no_cost(
    supervisor: Supervisor, database: Database, settings: Settings, inspection: tuple[str, str]
) -> None:
    settings.work_dir.write_text("no folder")
    assert supervisor.run_next("inspect") is False
    job, dataset = read(database, inspection)
    assert (job.status, job.attempt, dataset.status) == ("queued", 0, "processing")
    settings.work_dir.unlink()
    assert supervisor.run_next("inspect") is True
    assert read(database, inspection)[0].status == "succeeded"


def test_a_fault_of_an_attempt_that_lost_its_lease_is_nobodys_end(
    supervisor: Supervisor, database: Database, inspection: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was paused for so long that its successor has taken the job and removed its folder."""

    def wake_up_too_late(*_: object) -> None:
        with database.transaction() as session:
            session.execute(update(JobRow).values(lease_until=JobRow.created_at))
        assert reap(database) == 1
        with database.transaction() as session:
            claim_job(session, inspection[0], owner="successor", lease_s=30)
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Workspace, "prepare", wake_up_too_late)
    assert supervisor.run_next("inspect") is False
    job, _ = read(database, inspection)
    assert (job.status, job.lease_owner, job.fence) == ("running", "successor", 2)


def test_a_lost_blob_fails_the_job_and_says_so(
    supervisor: Supervisor, database: Database, store: LocalBlobStore, inspection: tuple[str, str]
) -> None:
    store.path(read(database, inspection)[1].source_digest).unlink()
    supervisor.run_next("inspect")
    job, dataset = read(database, inspection)
    assert (job.status, dataset.status) == ("failed", "rejected")
    assert job.error == dataset.error
    assert job.error is not None
    assert job.error["code"] == "internal_error"


def test_the_end_is_committed_once_the_database_is_back(
    supervisor: Supervisor, database: Database, inspection: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process has ended well; the next two transactions find nobody at home."""
    real, away = database.transaction, [0]

    @contextmanager
    def flaky():
        if away[0] > 0:
            away[0] -= 1
            raise OperationalError("connect", {}, ConnectionRefusedError())
        with real() as session:
            yield session

    put_file = LocalBlobStore.put_file

    def put_then_go_away(store: LocalBlobStore, source: Path):
        away[0] = 2
        return put_file(store, source)

    monkeypatch.setattr(database, "transaction", flaky)
    monkeypatch.setattr(LocalBlobStore, "put_file", put_then_go_away)
    assert supervisor.run_next("inspect") is True
    assert away == [0]
    monkeypatch.undo()
    job, dataset = read(database, inspection)
    assert (job.status, job.attempt, dataset.status) == ("succeeded", 1, "ready")


def test_a_draining_supervisor_gives_the_job_back(
    supervisor: Supervisor, database: Database, inspection: tuple[str, str]
) -> None:
    supervisor.drain()
    supervisor.run_next("inspect")
    job, _ = read(database, inspection)
    assert (job.status, job.attempt, job.fence) == ("queued", 0, 1)


def test_an_inspection_that_takes_too_long_is_ended_and_says_what_was_slow(
    settings: Settings, database: Database, store: LocalBlobStore, slow_inspection: tuple[str, str]
) -> None:
    limited = Supervisor(settings.model_copy(update={"inspection_timeout_s": 8.0}), database, store)
    assert limited.run_next("inspect") is True
    with database.transaction() as session:
        job, model = session.get_one(JobRow, slow_inspection[0]), session.get_one(ModelRow, slow_inspection[1])
    assert (job.status, job.attempt, model.status) == ("failed", 1, "rejected")
    assert model.error is not None
    assert model.error == job.error
    assert model.error["code"] == "timeout"
    assert "The inspection of the model took longer than 8 s" in model.error["detail"]
    assert "smaller input_shape" in model.error["hint"]


@pytest.mark.parametrize(
    ("kind", "stage", "words"),
    [
        ("inspect_model", "trace", "and was still running the network on one sample."),
        ("inspect_dataset", "import", "and was still reading the samples."),
        ("slice", "coverage", "and was still at 'coverage'."),
        ("compare", "", "took longer than 3 s."),
    ],
)
def test_a_timeout_says_what_was_too_slow(kind: str, stage: str, words: str) -> None:
    error = timed_out(kind, stage, 3.0, resumable=False)
    assert error["detail"].endswith(words)
    assert ("INSPECTION_TIMEOUT_S" in error["hint"]) == kind.startswith("inspect")


def test_a_job_that_ran_out_of_time_goes_on_when_it_is_retried(
    settings: Settings, database: Database, store: LocalBlobStore
) -> None:
    """Its files hold nothing that could be read, so only what is not looked at first can be seen."""
    with database.transaction() as session:
        project = ensure_project(session, "default")
        blob = store.put_stream(io.BytesIO(b"content"), max_bytes=100)
        rows = [Catalog(session, project).add(kind, NewAsset("x", {}, {}), blob) for kind in (ModelRow, DatasetRow)]
        for row in rows:
            accept(row, digest=blob.digest, size_bytes=7, facts={"input_shape": [1], "categories": 2})
        spec = SliceSpec(kind="slice", model_id=rows[0].id, dataset_id=rows[1].id)
        job_id = JobService(session, project, max_attempts=1).submit(spec).id
    left = settings.work_dir / job_id / "attempt-0" / "checkpoints"
    left.mkdir(parents=True)
    (left / "training.safetensors").write_text("3 epochs")

    def run(timeout_s: float) -> tuple[JobRow, list[str]]:
        Supervisor(settings.model_copy(update={"job_timeout_s": timeout_s}), database, store).run_next("compute")
        with database.transaction() as session:
            job = session.get_one(JobRow, job_id)
        return job, [str(path.relative_to(settings.work_dir / job_id)) for path in settings.work_dir.rglob("*.*")]

    for fence in (1, 2):
        job, files = run(0.001)
        assert (job.status, job.error and (job.error["code"], job.error["retryable"])) == ("failed", ("timeout", True))
        assert files == [f"attempt-{fence}/checkpoints/training.safetensors"]
        with database.transaction() as session:
            JobService(session, project, max_attempts=1).retry(job_id)
    job, files = run(60)
    assert (job.status, job.error and job.error["code"], files) == ("failed", "invalid_checkpoint", [])


def test_deleting_a_model_ends_its_running_inspection(
    supervisor: Supervisor, database: Database, slow_inspection: tuple[str, str]
) -> None:
    job_id, model_id = slow_inspection
    thread = threading.Thread(target=supervisor.run_next, args=("inspect",))
    thread.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with database.transaction() as session:
            progress = session.get_one(JobRow, job_id).progress
        if progress is not None and progress["stage"] == "trace":
            break
        time.sleep(0.1)
    with database.transaction() as session:
        JobService(session, ensure_project(session, "default"), max_attempts=3).cancel_inspection(model_id)
    thread.join(20)
    assert not thread.is_alive()
    with database.transaction() as session:
        assert session.get_one(JobRow, job_id).status == "cancelled"


def test_the_process_gets_no_credential_and_dies_on_command(
    database: Database,
    settings: Settings,
    store: LocalBlobStore,
    inspection: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("REDIS_URL", "redis://secret")
    with database.transaction() as session:
        held = claim_job(session, inspection[0], owner="me", lease_s=30)
        inputs = collect_inputs(session, held)
    workspace = Workspace.create(settings.work_dir, held, max_checkpoint_bytes=10**6)
    workspace.prepare(held, inputs, store, Limits(memory_bytes=2**34, file_bytes=2**30, threads=1))
    child = Child.start(workspace.root, threads=1)
    try:
        environment = Path(f"/proc/{child.pid}/environ").read_bytes()
        assert b"secret" not in environment
        assert os.getpgid(child.pid) == child.pid
    finally:
        child.stop(0.1)
    assert child.exit_code() is not None
