"""One job over many workers: its analysis is split into shards, which are jobs of their own.

While its shards are under way their parent runs with nobody holding it, in a queue that no worker serves. What the
shards find is kept as partials (app.jobs.analyses). The commit of the last one puts the parent back into its queue, and
whoever claims it then merges the partials and goes on. Whoever ends a shard locks its parent first, but not against
rows that refer to it (key_share): a claim writes its shard's row twice, for which Postgres checks the reference anew,
while it holds the row that whoever has locked the parent wants next.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.orm import Session

from app.artifacts.orm import DatasetRow
from app.db import Database, JsonObject
from app.ids import new_id
from app.jobs import analyses
from app.jobs.claims import Claim
from app.jobs.events import STATUS, add_event
from app.jobs.leases import back_to_queue, close, ending, let_go, renew
from app.jobs.orm import JobRow, OutboxRow
from app.jobs.queue import LocalQueue
from app.jobs.shard_progress import show
from app.jobs.specs import ClientSpec, ReadaptSpec, RestructureSpec, ShardSpec, SliceSpec, parse_spec, queue_of
from app.jobs.specs.analysing import analysis_of
from app.jobs.specs.sharding import SHARD, is_shardable
from app.jobs.status import JobStatus
from neusemslice.config import MOST_SHARDS

WAITING = "waiting"
"""The queue of a job that waits for its shards."""
SAMPLES_A_SHARD = 50_000
"""Of the train split, where the number of shards is `auto`."""


def shards_wanted(session: Session, spec: ClientSpec) -> int:
    """By how many workers the job's analysis is to be made."""
    slicing = analysis_of(spec)
    if slicing is None or not isinstance(spec, SliceSpec | RestructureSpec | ReadaptSpec) or spec.dataset_id is None:
        return 1
    if spec.shards != "auto":
        return spec.shards
    facts = session.get_one(DatasetRow, spec.dataset_id).facts or {}
    samples = facts.get("samples", {}).get("train", {}).get("total", 0) if is_shardable(slicing) else 0
    return min(max(1, -(-samples // SAMPLES_A_SHARD)), MOST_SHARDS)


def find_partials(session: Session, held: Claim, spec: ClientSpec) -> dict[int, str]:
    """The digests of the partials of the job's analysis, by shard; empty unless they are all there."""
    count = shards_wanted(session, spec)
    found = analyses.find_partials(session, held, spec, count) if count > 1 else {}
    return found if len(found) == count else {}


def split(session: Session, held: Claim, *, max_attempts: int) -> bool:
    """Queue the shards that the claimed job's analysis lacks and let go of it; False if it can be worked on now.

    Raises:
        LeaseLostError: the job is no longer ours.
    """
    spec = parse_spec(held.spec)
    if not isinstance(spec, SliceSpec | RestructureSpec | ReadaptSpec):
        return False
    count = shards_wanted(session, spec)
    if count == 1 or analyses.find(session, held, spec) is not None:
        return False
    missing = set(range(count)) - analyses.find_partials(session, held, spec, count).keys()
    earlier = {shard.shard_index: shard for shard in _shards_of(session, held.job_id)}
    if not missing or (earlier and held.is_last_attempt):
        return False
    if renew(session, held, lease_s=0):
        close(session, held, JobStatus.CANCELLED)
        return True
    merging = {} if earlier else {"attempt_limit": JobRow.attempt_limit + 1}
    let_go(session, held, queue=WAITING, **merging)
    for index, shard in earlier.items():
        if index not in missing and shard.status in (JobStatus.FAILED, JobStatus.CANCELLED):
            _set(session, shard.id, parent_job_id=None)
    for index in sorted(missing):
        if index not in earlier:
            _add(session, held, spec, index, count, max_attempts=max_attempts)
        elif JobStatus(earlier[index].status).is_terminal:
            _requeue_shard(session, earlier[index], max_attempts=max_attempts)
        else:
            _set(session, earlier[index].id, cancel_requested=False)
    add_event(session, held.job_id, "sharded", {"shards": count, "queued": len(missing), "attempt": held.attempt})
    _ring(session, queue_of(held.kind))
    return True


def lock_parent(session: Session, held: Claim) -> str | None:
    """Before a shard ends: the id of its parent, now locked; None if the job is no shard."""
    if held.kind != SHARD:
        return None
    own = select(JobRow.parent_job_id).where(JobRow.id == held.job_id).scalar_subquery()
    return session.scalar(select(JobRow.id).where(JobRow.id == own).with_for_update(key_share=True))


def settle(session: Session, parent_id: str | None) -> None:
    """Go by what its shards have become: put the parent back into the queue, fail it, or let it wait on."""
    query = select(JobRow).where(JobRow.id == parent_id).with_for_update(key_share=True)
    parent = session.scalars(query, execution_options={"populate_existing": True}).one_or_none()
    if parent is None or not is_waiting(parent):
        return
    shards = _shards_of(session, parent.id)
    failed = next((shard for shard in shards if shard.status == JobStatus.FAILED), None)
    queue, status = queue_of(parent.kind), {"attempt": parent.attempt}
    if failed is not None:
        end(session, parent, JobStatus.FAILED, {"reason": "shard_failed"}, error=failed.error)
    elif all(shard.status == JobStatus.SUCCEEDED for shard in shards):
        _set(session, parent.id, **back_to_queue(), queue=queue)
        session.add(OutboxRow(job_id=parent.id, queue=queue))
        add_event(session, parent.id, STATUS, status | {"status": JobStatus.QUEUED.value, "reason": "shards_done"})
        _ring(session, queue)
    else:
        for shard in shards:
            if shard.status == JobStatus.CANCELLED:
                _requeue_shard(session, shard, max_attempts=shard.attempt_limit - shard.attempt)
        show(session, parent.id, shards)


def settle_all(database: Database) -> None:
    """`settle` for every waiting job: the reaper ends shards without their parent's lock."""
    with database.transaction() as session:
        parents = session.scalars(select(JobRow.id).where(waiting_jobs())).all()
    for parent_id in parents:
        with database.transaction() as session:
            settle(session, parent_id)


def cancel(session: Session, parent: JobRow) -> None:
    """End a locked, waiting job as its client asks for, and stop its shards."""
    end(session, parent, JobStatus.CANCELLED, {}, cancel_requested=True)


def end(session: Session, parent: JobRow, status: JobStatus, why: JsonObject, **values: Any) -> None:
    """End a locked, waiting job in a terminal status, and stop its shards; its event says `why`."""
    _cancel_all(session, _shards_of(session, parent.id))
    _set(session, parent.id, **ending(status), **values, queue=queue_of(parent.kind))
    add_event(session, parent.id, STATUS, {"status": status.value, "attempt": parent.attempt} | why)


def waiting_jobs() -> ColumnElement[bool]:
    """Those that wait for their shards."""
    return and_(JobRow.status == JobStatus.RUNNING.value, JobRow.queue == WAITING)


def is_waiting(job: JobRow) -> bool:
    """Whether the job waits for its shards."""
    return job.status == JobStatus.RUNNING and job.queue == WAITING


def _shards_of(session: Session, parent_id: str) -> Sequence[JobRow]:
    query = select(JobRow).where(JobRow.parent_job_id == parent_id).order_by(JobRow.shard_index)
    return session.scalars(query, execution_options={"populate_existing": True}).all()


def _add(session: Session, held: Claim, spec: ClientSpec, index: int, count: int, *, max_attempts: int) -> None:
    parent = session.get_one(JobRow, held.job_id)
    same = ("model_id", "dataset_id", "seed", "batch_size", "limit_per_category")
    values: dict[str, Any] = {field: getattr(spec, field) for field in same}
    shard_spec = ShardSpec(kind="shard", **values, slicing=analysis_of(spec), index=index, count=count)
    shard = JobRow(
        id=new_id("job"),
        project_id=held.project_id,
        kind=SHARD,
        queue=queue_of(SHARD),
        priority=parent.priority,
        max_runtime_s=parent.max_runtime_s,
        deadline=parent.deadline,
        spec=shard_spec.model_dump(mode="json", exclude={"metadata", "priority", "max_runtime_s", "deadline"}),
        attempt_limit=max_attempts,
        request_id=held.origin.request_id,
        traceparent=held.origin.traceparent,
        parent_job_id=held.job_id,
        shard_index=index,
    )
    session.add(shard)
    session.flush()
    session.add(OutboxRow(job_id=shard.id, queue=shard.queue))
    add_event(session, shard.id, STATUS, {"status": JobStatus.QUEUED.value})


def _requeue_shard(session: Session, shard: JobRow, *, max_attempts: int) -> None:
    fresh = {"error": None, "finished_at": None, "cancel_requested": False}
    _set(session, shard.id, **back_to_queue(), **fresh, attempt_limit=shard.attempt + max(1, max_attempts))
    session.add(OutboxRow(job_id=shard.id, queue=shard.queue))
    add_event(session, shard.id, STATUS, {"status": JobStatus.QUEUED.value, "reason": "needed_again"})
    _ring(session, shard.queue)


def _cancel_all(session: Session, shards: Sequence[JobRow]) -> None:
    """Queued ones end at once, running ones are asked to stop."""
    under_way = [shard.id for shard in shards if not JobStatus(shard.status).is_terminal]
    for shard in session.scalars(select(JobRow).where(JobRow.id.in_(under_way)).order_by(JobRow.id).with_for_update()):
        session.refresh(shard)
        if shard.status == JobStatus.QUEUED:
            _set(session, shard.id, **ending(JobStatus.CANCELLED))
            add_event(session, shard.id, STATUS, {"status": JobStatus.CANCELLED.value, "attempt": shard.attempt})
        elif shard.status == JobStatus.RUNNING:
            _set(session, shard.id, cancel_requested=True)


def _set(session: Session, job_id: str, **values: object) -> None:
    session.execute(update(JobRow).where(JobRow.id == job_id).values(**values))


def _ring(session: Session, queue: str) -> None:
    """Wake local dispatchers at commit; the relay tells Celery's workers."""
    session.execute(select(func.pg_notify(LocalQueue.CHANNEL, queue)))
