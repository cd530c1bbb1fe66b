"""What nothing needs goes after a while; what something needs never does, whoever puts the same bytes meanwhile."""

import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from app.artifacts.catalog import Catalog, NewAsset, accept
from app.artifacts.orm import ArtifactRow, BlobRow, DatasetRow, ModelRow, UploadRow
from app.artifacts.staging import Staging
from app.artifacts.store import Blob, BlobStore, LocalBlobStore
from app.artifacts.stores import make_store
from app.artifacts.uploads import NewUpload, Uploads
from app.db import Base, Database
from app.jobs import retention
from app.jobs.garbage import Collector
from app.jobs.orm import AnalysisRow, JobRow
from app.jobs.service import JobService
from app.jobs.specs import SliceSpec
from app.projects.keys import ensure_project
from app.settings import Settings
from tests.claims import claim_job

LONG = timedelta(days=40)
SHORT_S = 0.4


@dataclass
class Deployment:
    settings: Settings
    database: Database
    store: BlobStore
    project: str

    def put(self, content: bytes) -> Blob:
        return self.store.put_stream(io.BytesIO(content), max_bytes=10**6)

    def has(self, blob: Blob) -> bool:
        return blob in set(self.store.blobs())

    def collector(self, **settings: Any) -> Collector:
        settings = self.settings.model_copy(update=settings)
        return Collector(settings, self.database, self.store, Staging(settings.upload_dir))

    def add_model(self, blob: Blob) -> str:
        with self.database.transaction() as session:
            model = Catalog(session, self.project).add(ModelRow, NewAsset("m", {}, {}), blob)
            accept(model, digest=blob.digest, size_bytes=blob.size_bytes, facts={"input_shape": [1], "categories": 2})
            return model.id

    def delete_model(self, model_id: str) -> None:
        with self.database.transaction() as session:
            Catalog(session, self.project).delete(ModelRow, model_id)

    def age(self, *blobs: Blob) -> None:
        """As if everything had happened long ago."""
        then = func.clock_timestamp() - LONG
        digests = [blob.digest for blob in blobs]
        with self.database.transaction() as session:
            session.execute(update(BlobRow).where(BlobRow.digest.in_(digests)).values(touched_at=then))
            for row in (ModelRow, DatasetRow, ArtifactRow):
                session.execute(update(row).where(row.deleted_at.is_not(None)).values(deleted_at=then))


@pytest.fixture
def deployment(settings: Settings, database: Database) -> Deployment:
    with database.transaction() as session:
        project = ensure_project(session, "default")
    return Deployment(settings, database, make_store(settings, database), project)


def test_every_column_that_names_a_blob_is_known() -> None:
    """Whoever adds another has to say in app.jobs.retention when its blob is needed."""
    known = {column.expression for column, _ in retention.OF_DELETABLE} | {it.expression for it in retention.OF_OTHERS}
    columns = {column for table in Base.metadata.tables.values() for column in table.columns}
    named = {column for column in columns if "digest" in column.name and column.table.name != "blobs"}
    assert {str(column) for column in named} == {str(column) for column in known}


def test_a_blob_that_nothing_needs_goes_after_the_grace_period(deployment: Deployment) -> None:
    blob, needed = deployment.put(b"orphan"), deployment.put(b"needed")
    deployment.add_model(needed)
    assert deployment.collector().collect().blobs == 0
    deployment.age(blob, needed)
    dry = deployment.collector().collect(dry_run=True)
    assert (dry.digests, dry.bytes, deployment.has(blob)) == ([blob.digest], 6, True)
    assert deployment.collector().collect().digests == [blob.digest]
    assert (deployment.has(blob), deployment.has(needed)) == (False, True)


def test_what_was_deleted_goes_once_no_job_names_it(deployment: Deployment) -> None:
    model_blob, data_blob = deployment.put(b"model"), deployment.put(b"data")
    model_id = deployment.add_model(model_blob)
    with deployment.database.transaction() as session:
        dataset = Catalog(session, deployment.project).add(DatasetRow, NewAsset("d", {}, {}), data_blob)
        facts = {"input_shape": [1], "categories": 2}
        accept(dataset, digest=data_blob.digest, size_bytes=data_blob.size_bytes, facts=facts)
        jobs = JobService(session, deployment.project, max_attempts=1)
        job_id = jobs.submit(SliceSpec(kind="slice", model_id=model_id, dataset_id=dataset.id)).id
        Catalog(session, deployment.project).delete(DatasetRow, dataset.id)
    deployment.delete_model(model_id)
    deployment.age(model_blob, data_blob)
    assert deployment.collector().collect().blobs == 0
    with deployment.database.transaction() as session:
        claim_job(session, job_id, owner="me", lease_s=60)
    assert deployment.collector().collect().blobs == 0
    for ago, removed in ((retention.RETRYABLE_KEPT / 2, 0), (retention.RETRYABLE_KEPT * 2, 2)):
        with deployment.database.transaction() as session:
            ended = {"status": "failed", "finished_at": func.clock_timestamp() - ago}
            session.execute(update(JobRow).where(JobRow.id == job_id).values(ended))
        assert deployment.collector().collect().blobs == removed


def test_a_deleted_artifact_goes(deployment: Deployment) -> None:
    blob = deployment.put(b"report")
    with deployment.database.transaction() as session:
        job = JobRow(id="job_1", project_id=deployment.project, kind="x", queue="x", spec={}, attempt_limit=1)
        session.add(job)
        session.flush()
        values = {"project_id": deployment.project, "job_id": job.id, "fence": 1, "media_type": "x"}
        session.add(ArtifactRow(id="art_1", name="r", digest=blob.digest, size_bytes=6, **values))
    deployment.age(blob)
    assert deployment.collector().collect().blobs == 0
    with deployment.database.transaction() as session:
        Catalog(session, deployment.project).delete_artifact("art_1")
    assert deployment.collector().collect().blobs == 0
    deployment.age(blob)
    assert deployment.collector().collect().digests == [blob.digest]


def test_unused_analyses_go_by_age_and_then_by_size(deployment: Deployment) -> None:
    blobs = [deployment.put(bytes([number]) * 10) for number in range(4)]
    ages = [timedelta(days=31), timedelta(days=20), timedelta(days=10), timedelta()]
    with deployment.database.transaction() as session:
        job = JobRow(id="job_1", project_id=deployment.project, kind="x", queue="x", spec={}, attempt_limit=1)
        session.add(job)
        session.flush()
        for blob, age in zip(blobs, ages, strict=True):
            row = AnalysisRow(project_id=deployment.project, key=blob.digest, job_id=job.id, digest=blob.digest)
            row.size_bytes, row.used_at = 10, func.clock_timestamp() - age
            session.add(row)
    deployment.age(*blobs)
    assert deployment.collector().collect(dry_run=True).analyses == 1
    assert deployment.collector().collect().digests == [blobs[0].digest]
    assert deployment.collector(analysis_max_bytes=20).collect().digests == [blobs[1].digest]
    assert deployment.collector(analysis_max_bytes=1).collect().digests == [blobs[2].digest]
    assert deployment.has(blobs[3])


def test_expired_uploads_go_with_their_bytes_unless_somebody_is_at_it(deployment: Deployment) -> None:
    staging = Staging(deployment.settings.upload_dir)
    with deployment.database.transaction() as session:
        uploads = Uploads(session, deployment.project, ttl_s=3600)
        expired, busy, fresh = (uploads.start(NewUpload("u", 10, None), part_bytes=10).id for _ in range(3))
        over = func.clock_timestamp() - timedelta(seconds=1)
        session.execute(update(UploadRow).where(UploadRow.id.in_([expired, busy])).values(expires_at=over))
    for upload_id in (expired, fresh, "upl_given_up"):
        with staging.writing(upload_id, 0, 10) as writer:
            writer.write([bytes(10)])
    with staging.writing(busy, 0, 10):
        assert deployment.collector().collect().uploads == 2
    assert sorted(staging.uploads()) == sorted([busy, fresh])
    with deployment.database.transaction() as session:
        assert sorted(session.scalars(select(UploadRow.id))) == sorted([busy, fresh])
    assert deployment.collector().collect().uploads == 1


def test_blobs_of_an_older_version_get_a_row_and_a_grace_period(deployment: Deployment, tmp_path: Path) -> None:
    unknown = LocalBlobStore(deployment.settings.blob_dir).put_stream(io.BytesIO(b"older"), max_bytes=10)
    assert deployment.collector().collect().blobs == 0
    deployment.age(unknown)
    assert deployment.collector().collect().digests == [unknown.digest]


class Slow(LocalBlobStore):
    """A store whose removals and announcements a test can hold up."""

    def __init__(self, root: Path, announce: Callable[[Blob], None]) -> None:
        super().__init__(root, self._announce_slowly)
        self._then = announce
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.holds = ""

    def remove(self, digest: str) -> None:
        self.hold("remove")
        super().remove(digest)

    def _announce_slowly(self, blob: Blob) -> None:
        self._then(blob)
        self.hold("put")

    def hold(self, step: str) -> None:
        if self.holds == step:
            self.holds = ""
            self.reached.set()
            assert self.go_on.wait(10)


@pytest.fixture
def slow(deployment: Deployment) -> Iterator[Slow]:
    announce = make_store(deployment.settings, deployment.database)._announce  # type: ignore[attr-defined]
    store = deployment.store = Slow(deployment.settings.blob_dir, announce)
    yield store
    store.go_on.set()


def test_a_put_during_the_removal_waits_for_it_and_stores_the_bytes_again(deployment: Deployment, slow: Slow) -> None:
    blob = deployment.put(b"contested")
    deployment.age(blob)
    slow.holds = "remove"
    with ThreadPoolExecutor(2) as threads:
        collecting = threads.submit(deployment.collector().collect)
        assert slow.reached.wait(10)
        putting = threads.submit(deployment.put, b"contested")
        time.sleep(0.2)
        assert not putting.done()
        slow.go_on.set()
        assert collecting.result().digests == [blob.digest]
        assert putting.result() == blob
    assert deployment.has(blob)


def test_a_removal_after_the_announcement_leaves_the_blob_alone(deployment: Deployment, slow: Slow) -> None:
    blob = deployment.put(b"contested")
    deployment.age(blob)
    slow.holds = "put"
    with ThreadPoolExecutor(1) as threads:
        putting = threads.submit(deployment.put, b"contested")
        assert slow.reached.wait(10)
        assert deployment.collector().collect().blobs == 0
        slow.go_on.set()
        assert putting.result() == blob
    assert deployment.has(blob)


def test_collectors_and_putters_of_the_same_few_bytes_race(deployment: Deployment) -> None:
    """Four putters keep making and deleting models of three contents while two collectors run all the time."""
    contents = [bytes([number]) * 100 for number in range(3)]
    stop = threading.Event()
    deadline = time.monotonic() + 4

    def collect() -> int:
        removed = 0
        collector = deployment.collector(gc_grace_s=SHORT_S)
        while not stop.is_set():
            removed += collector.collect().blobs
        return removed

    def put(seed: int) -> int:
        lost = turn = 0
        while time.monotonic() < deadline:
            turn += 1
            content = contents[(seed + turn) % 3]
            model_id = deployment.add_model(deployment.put(content))
            place = deployment.store.path(hashlib.sha256(content).hexdigest())
            lost += not place.exists() or place.read_bytes() != content
            time.sleep(SHORT_S * 1.5 if turn % 4 == 0 else 0.01)
            lost += not place.exists()
            deployment.delete_model(model_id)
            if turn % 4 == 0:
                time.sleep(SHORT_S * 2)
        return lost

    with ThreadPoolExecutor(6) as threads:
        collectors = [threads.submit(collect) for _ in range(2)]
        putters = [threads.submit(put, seed) for seed in range(4)]
        lost = sum(putter.result() for putter in putters)
        stop.set()
        removed = sum(collector.result() for collector in collectors)
    assert lost == 0
    assert removed > 0
