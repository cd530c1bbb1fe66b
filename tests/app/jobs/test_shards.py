"""A job waits for its shards without holding a worker, and ends or goes on by what becomes of them."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import select, update

from app.artifacts.orm import DatasetRow
from app.artifacts.store import Blob
from app.db import Database
from app.errors import NotFoundError
from app.jobs import completion, leases, shard_progress, shards
from app.jobs.claims import Claim
from app.jobs.orm import JobEventRow, JobRow, OutboxRow
from app.jobs.reaper import reap
from app.jobs.service import JobService
from app.jobs.specs import ReadaptSpec, RestructureSpec, SliceSpec, SlicingParams
from app.projects.orm import ProjectRow
from neusemslice.data.facts import DatasetFacts
from neusemslice.data.preprocess import Preprocess
from tests.app.jobs.conftest import read

SHARDS = 3


@pytest.fixture
def submit(database: Database, project: str, spec: SliceSpec) -> Callable[..., str]:
    def do(**values: Any) -> str:
        with database.transaction() as session:
            asked = SliceSpec(**spec.model_dump() | {"shards": SHARDS} | values)
            return JobService(session, project, max_attempts=2).submit(asked).id

    return do


@pytest.fixture
def parent(database: Database, submit: Callable[..., str]) -> str:
    """A job that waits for its shards."""
    job_id = submit(priority="high")
    assert split(database, take(database))
    return job_id


def take(database: Database) -> Claim:
    with database.transaction() as session:
        held = leases.claim_next(session, "compute", owner="me", lease_s=30)
    assert held is not None
    return held


def split(database: Database, held: Claim) -> bool:
    with database.transaction() as session:
        return shards.split(session, held, max_attempts=2)


def succeed(database: Database, held: Claim) -> None:
    digest = str(held.spec["index"]) * 64
    partial = completion.Output("partial.safetensors", "x", Blob(digest, 1), role="analysis")
    with database.transaction() as session:
        completion.succeed(session, held, result={}, versions={}, outputs=[partial])


def fail(database: Database, held: Claim) -> None:
    with database.transaction() as session:
        completion.fail(session, held, {"code": "out_of_memory"})


def shards_of(database: Database, parent: str) -> list[JobRow]:
    with database.transaction() as session:
        query = select(JobRow).where(JobRow.parent_job_id == parent).order_by(JobRow.shard_index)
        return list(session.scalars(query))


def statuses(database: Database, parent: str) -> list[str]:
    return [shard.status for shard in shards_of(database, parent)]


def end_lease(database: Database, job_id: str) -> None:
    with database.transaction() as session:
        past = update(JobRow).where(JobRow.id == job_id).values(lease_until=JobRow.created_at)
        session.execute(past)


def test_the_last_shard_puts_its_parent_back_into_the_queue(database: Database, parent: str) -> None:
    waiting = read(database, parent)
    assert (waiting.status, waiting.queue, waiting.lease_owner) == ("running", "waiting", None)
    found = shards_of(database, parent)
    assert [(shard.kind, shard.queue, shard.priority, shard.shard_index) for shard in found] == [
        ("shard", "compute", 1, index) for index in range(SHARDS)
    ]
    with database.transaction() as session:
        announced = set(session.scalars(select(OutboxRow.job_id)))
    assert {shard.id for shard in found} <= announced
    for _ in range(SHARDS):
        assert read(database, parent).status == "running"
        succeed(database, take(database))
    job = read(database, parent)
    assert (job.status, job.queue) == ("queued", "compute")
    held = take(database)
    assert (held.job_id, held.attempt, held.is_last_attempt) == (parent, 2, False)
    assert split(database, held) is False
    with database.transaction() as session:
        spec = SliceSpec(**held.spec)
        assert shards.find_partials(session, held, spec) == {index: str(index) * 64 for index in range(SHARDS)}


def test_clients_see_the_parent_alone(database: Database, project: str, parent: str) -> None:
    with database.transaction() as session:
        service = JobService(session, project, max_attempts=2)
        assert [job.id for job in service.list(before=None, limit=10)] == [parent]
        with pytest.raises(NotFoundError):
            service.get(shards_of(database, parent)[0].id)


def test_progress_is_the_sum_of_the_shards_and_only_grows(database: Database, parent: str) -> None:
    held = take(database)

    def report(fraction: float) -> dict[str, Any] | None:
        with database.transaction() as session:
            leases.renew(session, held, lease_s=30, progress={"fraction": fraction})
        with database.transaction() as session:
            shard_progress.pass_on(session, held)
        return read(database, parent).progress

    about = {"stage": "shards", "total": SHARDS, "eta_s": None}
    assert report(0.6) == about | {"done": 0, "fraction": 0.1}
    assert report(0.61) == about | {"done": 0, "fraction": 0.1}
    succeed(database, held)
    assert read(database, parent).progress == about | {"done": 1, "fraction": 0.1667}
    with database.transaction() as session:
        types = list(session.scalars(select(JobEventRow.type).where(JobEventRow.job_id == parent)))
    assert types.count("progress") == 2


def test_a_failed_shard_fails_its_parent_and_stops_the_others(database: Database, project: str, parent: str) -> None:
    first, second = take(database), take(database)
    fail(database, first)
    job = read(database, parent)
    assert (job.status, job.queue, job.error) == ("failed", "compute", {"code": "out_of_memory"})
    assert statuses(database, parent) == ["failed", "running", "cancelled"]
    with database.transaction() as session:
        assert leases.renew(session, second, lease_s=30) is True
    succeed(database, second)
    assert read(database, parent).status == "failed"
    with database.transaction() as session:
        JobService(session, project, max_attempts=2).retry(parent)
    assert split(database, take(database))
    assert statuses(database, parent) == ["queued", "succeeded", "queued"]
    succeed(database, take(database))
    succeed(database, take(database))
    assert read(database, parent).status == "queued"


def test_cancelling_stops_all(database: Database, project: str, parent: str) -> None:
    succeed(database, take(database))
    running = take(database)
    with database.transaction() as session:
        cancelled = JobService(session, project, max_attempts=2).cancel(parent)
        assert (cancelled.status, cancelled.queue) == ("cancelled", "compute")
    assert statuses(database, parent) == ["succeeded", "running", "cancelled"]
    with database.transaction() as session:
        assert leases.renew(session, running, lease_s=30) is True
        completion.cancel(session, running)
    assert read(database, parent).status == "cancelled"


def test_a_retry_that_overtakes_the_end_of_a_cancelled_shard(database: Database, project: str, parent: str) -> None:
    running = take(database)
    with database.transaction() as session:
        service = JobService(session, project, max_attempts=2)
        service.cancel(parent)
        service.retry(parent)
    assert split(database, take(database))
    assert statuses(database, parent) == ["running", "queued", "queued"]
    with database.transaction() as session:
        completion.cancel(session, running)
    assert statuses(database, parent) == ["queued", "queued", "queued"]
    assert read(database, parent).status == "running"


def test_a_cancel_between_claim_and_split_ends_the_job(
    database: Database, project: str, submit: Callable[..., str]
) -> None:
    job_id = submit()
    held = take(database)
    with database.transaction() as session:
        JobService(session, project, max_attempts=2).cancel(job_id)
    assert split(database, held)
    assert (read(database, job_id).status, shards_of(database, job_id)) == ("cancelled", [])


def test_a_lost_shard_is_redone_alone_and_then_fails_its_parent(database: Database, parent: str) -> None:
    lost = take(database)
    end_lease(database, lost.job_id)
    reap(database)
    assert [shard.attempt for shard in shards_of(database, parent)] == [1, 0, 0]
    assert statuses(database, parent) == ["queued"] * SHARDS
    assert read(database, parent).status == "running"
    end_lease(database, take(database).job_id)
    reap(database)
    job = read(database, parent)
    assert job.error is not None
    assert (job.status, job.error["code"]) == ("failed", "worker_lost")
    assert statuses(database, parent) == ["failed", "cancelled", "cancelled"]


def test_whoever_held_the_parent_can_write_nothing_more(database: Database, submit: Callable[..., str]) -> None:
    job_id = submit()
    held = take(database)
    assert split(database, held)
    with pytest.raises(leases.LeaseLostError), database.transaction() as session:
        completion.cancel(session, held)
    reap(database)
    assert read(database, job_id).status == "running"


def test_a_limit_of_one_running_job_does_not_count_the_waiting_one(
    database: Database, project: str, parent: str
) -> None:
    with database.transaction() as session:
        session.execute(update(ProjectRow).where(ProjectRow.id == project).values(max_running_jobs=1))
    for _ in range(SHARDS):
        succeed(database, take(database))
    assert take(database).job_id == parent


def test_an_analysis_that_was_made_is_not_shared_out(database: Database, submit: Callable[..., str]) -> None:
    submit(shards=1)
    held = take(database)
    whole = completion.Output("analysis.safetensors", "x", Blob("e" * 64, 1), role="analysis")
    with database.transaction() as session:
        completion.succeed(session, held, result={}, versions={}, outputs=[whole])
    submit()
    assert split(database, take(database)) is False


@pytest.mark.parametrize(("samples", "wanted"), [(1, 1), (50_000, 1), (50_001, 2), (10**7, 16)])
def test_auto_goes_by_the_number_of_samples(database: Database, spec: SliceSpec, samples: int, wanted: int) -> None:
    asked = spec.model_copy(update={"shards": "auto"})
    flattened = asked.model_copy(update={"slicing": SlicingParams(landscape="flattened")})
    with database.transaction() as session:
        facts = DatasetFacts(
            input_shape=(4,), class_names=("a", "b"), samples={"train": (samples - 1, 1)}, preprocess=Preprocess()
        )
        session.get_one(DatasetRow, spec.dataset_id).facts = facts.to_dict()
        assert shards.shards_wanted(session, asked) == wanted
        assert shards.shards_wanted(session, flattened) == 1


@pytest.mark.parametrize(
    "refused",
    [
        lambda ids: SliceSpec(kind="slice", **ids, shards=2, slicing=SlicingParams(strategy="deeparc")),
        lambda ids: SliceSpec(kind="slice", **ids, shards=2, slicing=SlicingParams(landscape="flattened")),
        lambda ids: SliceSpec(kind="slice", **ids, shards=17),
        lambda ids: RestructureSpec(kind="restructure", **ids, shards=2, slice_id="art_" + "0" * 26),
        lambda ids: ReadaptSpec(kind="readapt", **ids, shards=2, method="full", attack={}),
    ],
)
def test_what_cannot_be_shared_out_is_refused(spec: SliceSpec, refused: Callable[[dict[str, str]], object]) -> None:
    with pytest.raises(ValidationError, match=r"shards|deeparc|flattened|16"):
        refused({"model_id": spec.model_id, "dataset_id": spec.dataset_id})
