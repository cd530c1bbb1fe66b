"""What must hold of every job, whatever was killed, once nothing is under way any more."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.artifacts.orm import ArtifactRow, AssetStatus, BlobRow, DatasetRow, ModelRow
from app.artifacts.store import LocalBlobStore
from app.db import Database
from app.jobs.orm import AnalysisRow, JobEventRow, JobRow, OutboxRow
from app.jobs.specs import JOB_KINDS, QUEUES, Producing, parse_spec
from app.jobs.status import JobStatus
from app.settings import Settings
from app.webhooks.orm import DeliveryRow
from tests.chaos.deployment import PATIENCE_S, Deployment, job_processes, until
from worker.sweeper import sweep

_TERMINAL = {status.value for status in JobStatus if status.is_terminal}
_ARTIFACTS = {"slice": {"report.json", "slice.safetensors"}}
_NEXT = {
    None: {"queued"},
    "queued": {"running", "cancelled"},
    "running": {"running", "queued", *_TERMINAL},
    "failed": {"queued"},
    "cancelled": {"queued"},
    "succeeded": set(),
}
"""From running to running: a lease that ran out was taken over."""


@dataclass
class Verdict:
    """What was found, in figures."""

    ends: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    checked: int = 0

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {status}" for status, count in sorted(self.ends.items()))
        return f"{self.ends.total()} jobs ({ends}) in {self.attempts} attempts, {self.checked} checks"


def examine(deployment: Deployment, keys: Iterable[str] = ()) -> Verdict:
    """Wait until every job has ended and nothing works any more, then check all that must hold.

    `keys` are the Idempotency-Keys under which datasets named like them were uploaded.

    Raises:
        AssertionError: with every violation that was found.
    """
    database, settings = deployment.database, deployment.settings
    _await_ends(deployment)
    until(lambda: not any(job_processes(settings.data_dir)), "no job's process is left", 10)
    until(lambda: not _count_outbox(database), "the outbox is empty", 10)
    _bring_forward_what_dead_senders_had(database)
    until(lambda: not _count_undelivered(database), "every message is delivered")
    verdict, wrong = Verdict(), []
    with database.transaction() as session:
        for job in session.scalars(select(JobRow)):
            verdict.ends[job.status] += 1
            verdict.attempts += job.fence
            for what, holds in _of_job(session, job):
                verdict.checked += 1
                if not holds:
                    wrong.append(f"{job.id} ({job.kind}, {job.status}, fence {job.fence}): {what}")
        for what, holds in (*_of_blobs(session, settings), *_of_keys(session, keys)):
            verdict.checked += 1
            if not holds:
                wrong.append(what)
    for what, holds in (*_of_messages(deployment), *_of_folders(settings, database)):
        verdict.checked += 1
        if not holds:
            wrong.append(what)
    assert not wrong, "\n".join(wrong)
    return verdict


def _of_job(session: Session, job: JobRow) -> Iterator[tuple[str, bool]]:
    query = select(JobEventRow).where(JobEventRow.job_id == job.id).order_by(JobEventRow.seq)
    events = session.scalars(query).all()
    statuses = [event.data["status"] for event in events if event.type == "status"]
    retried = [event for event in events if event.data.get("reason") == "retried"]
    yield "ended", job.status in _TERMINAL
    yield "its events are numbered without gaps", [event.seq for event in events] == list(range(1, job.event_count + 1))
    yield (
        f"each status follows from the one before: {statuses}",
        all(after in _NEXT[before] for before, after in zip([None, *statuses], statuses, strict=False)),
    )
    yield (
        "one terminal event, and one more for each retry",
        len(_TERMINAL & set(statuses)) >= 1 and sum(status in _TERMINAL for status in statuses) == 1 + len(retried),
    )
    yield "the last status is the job's", statuses[-1:] == [job.status]
    yield "every claim is an event", statuses.count("running") == job.fence
    yield "no lease is left", job.lease_owner is None and job.lease_until is None and job.finished_at is not None
    yield "no more attempts than allowed", job.attempt <= job.attempt_limit
    yield "an error if and only if it failed", (job.error is not None) == (job.status == JobStatus.FAILED)
    yield "a result if and only if it succeeded", (job.result is not None) == (job.status == JobStatus.SUCCEEDED)
    yield from _of_outputs(session, job)


def _of_outputs(session: Session, job: JobRow) -> Iterator[tuple[str, bool]]:
    artifacts = session.scalars(select(ArtifactRow).where(ArtifactRow.job_id == job.id)).all()
    names = Counter(artifact.name for artifact in artifacts)
    yield "no artifact of an attempt that did not end it", {artifact.fence for artifact in artifacts} <= {job.fence}
    yield "no artifact twice", max(names.values(), default=1) == 1
    expected = _ARTIFACTS.get(job.kind) if job.status == JobStatus.SUCCEEDED else set()
    if expected is not None:
        yield f"its artifacts are {sorted(expected)}: {sorted(names)}", set(names) == expected
    models = session.scalars(select(ModelRow).where(ModelRow.produced_by_job_id == job.id)).all()
    produces = job.status == JobStatus.SUCCEEDED and isinstance(parse_spec(job.spec), Producing)
    yield "one produced model if it succeeded and produces one", len(models) == int(produces)
    if job.kind in ("inspect_model", "inspect_dataset"):
        inspected = job.spec.get("dataset_id") or job.spec["model_id"]
        asset = session.get_one(DatasetRow if inspected.startswith("ds_") else ModelRow, inspected)
        status = {"succeeded": AssetStatus.READY, "failed": AssetStatus.REJECTED}.get(job.status)
        yield f"what it inspected says the same: {asset.status}", status is None or asset.status == status


def _of_blobs(session: Session, settings: Settings) -> Iterator[tuple[str, bool]]:
    store = LocalBlobStore(settings.blob_dir)
    announced = set(session.scalars(select(BlobRow.digest)))
    for table in (ArtifactRow, DatasetRow, ModelRow, AnalysisRow):
        for digest, size_bytes in session.execute(select(table.digest, table.size_bytes)):
            if digest is not None:
                named = f"{table.__tablename__} {digest}"
                yield f"{named}: its bytes are there and true", _is_true(store, digest, size_bytes)
                yield f"{named}: garbage collection knows of it", digest in announced


def _is_true(store: LocalBlobStore, digest: str, size_bytes: int) -> bool:
    path = store.path(digest)
    if not path.is_file() or path.stat().st_size != size_bytes:
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _of_keys(session: Session, keys: Iterable[str]) -> Iterator[tuple[str, bool]]:
    names = Counter(session.scalars(select(DatasetRow.name)))
    inspections = session.scalars(select(JobRow).where(JobRow.kind == "inspect_dataset"))
    inspected = Counter(job.spec["dataset_id"] for job in inspections)
    yield "no dataset is inspected twice", max(inspected.values(), default=1) == 1
    for key in keys:
        yield f"the request {key} took effect once: {names[key]}", names[key] == 1


def _of_messages(deployment: Deployment) -> Iterator[tuple[str, bool]]:
    """Each event has one message, and the receiver got it at least once; its id tells repetitions."""
    if deployment.receiver is None:
        return
    with deployment.database.transaction() as session:
        deliveries = session.scalars(select(DeliveryRow)).all()
        told = Counter((row.subject_id, row.body["data"]["seq"], row.body["data"]["status"]) for row in deliveries)
        events = select(JobEventRow).join(JobRow, JobRow.id == JobEventRow.job_id)
        of_clients = (JobEventRow.type == "status", JobRow.kind.in_(JOB_KINDS))
        happened = Counter(
            (event.job_id, event.seq, event.data["status"]) for event in session.scalars(events.where(*of_clients))
        )
    yield f"each event has its message: {told - happened} too many, {happened - told} lacking", told == happened
    received: dict[str, set[bytes]] = {}
    for message in deployment.receiver.messages:
        received.setdefault(message.headers["webhook-id"], set()).add(message.body)
    yield "every message arrived, and no other", received.keys() == {row.event_id for row in deliveries}
    yield "a message that came twice is the same", all(len(bodies) == 1 for bodies in received.values())


def _of_folders(settings: Settings, database: Database) -> Iterator[tuple[str, bool]]:
    """What a kill left is what the sweeper removes, once it is old."""
    week_ago = time.time() - 7 * 24 * 3600
    for folder in (settings.work_dir, settings.blob_dir / "incoming"):
        for path in folder.iterdir() if folder.is_dir() else ():
            os.utime(path, (week_ago, week_ago))
    sweep(settings, database)
    with database.transaction() as session:
        failed = set(session.scalars(select(JobRow.id).where(JobRow.status == JobStatus.FAILED.value)))
    work = {path.name for path in settings.work_dir.iterdir()} if settings.work_dir.is_dir() else set()
    incoming = list((settings.blob_dir / "incoming").iterdir())
    yield f"no work folder is left but of failed jobs, for a retry: {work - failed}", work <= failed
    yield f"no half-written upload is left: {incoming}", incoming == []


def _await_ends(deployment: Deployment) -> None:
    """As long as jobs go on ending: a storm leaves more of them than one wait is for."""
    left, patience = -1, 0.0
    while (now := _under_way(deployment.database)) > 0:
        if now != left:
            left, patience = now, time.monotonic() + PATIENCE_S
        assert time.monotonic() < patience, f"{left} jobs do not end:\n{deployment.log[-3000:]}"
        time.sleep(0.05)


def _under_way(database: Database) -> int:
    with database.transaction() as session:
        query = select(JobRow.id).where(JobRow.status.in_((JobStatus.QUEUED.value, JobStatus.RUNNING.value)))
        return len(session.scalars(query.where(JobRow.queue.in_(QUEUES))).all())


def _count_outbox(database: Database) -> int:
    with database.transaction() as session:
        return len(session.scalars(select(OutboxRow.id)).all())


def _count_undelivered(database: Database) -> int:
    with database.transaction() as session:
        return len(session.scalars(select(DeliveryRow.event_id).where(DeliveryRow.status == "pending")).all())


def _bring_forward_what_dead_senders_had(database: Database) -> None:
    """It would be due again in two minutes. Live senders lose theirs too, and it is sent twice."""
    with database.transaction() as session:
        pending = update(DeliveryRow).where(DeliveryRow.status == "pending")
        session.execute(pending.values(due_at=func.clock_timestamp()))
