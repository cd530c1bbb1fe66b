"""Submitting, cancelling and retrying."""

from collections.abc import Callable

import pytest
from sqlalchemy import select

from app.artifacts.catalog import Catalog, NewAsset, reject
from app.artifacts.orm import ArtifactRow, DatasetRow, ModelRow
from app.artifacts.store import Blob
from app.db import Database
from app.errors import ConflictError, InvalidInputError, NotFoundError, NotReadyError
from app.jobs import completion, leases
from app.jobs.service import JobService
from app.jobs.specs import RestructureSpec, SliceSpec, SlicingParams
from app.projects.keys import ensure_project
from tests.app.jobs.conftest import FACTS, read
from tests.claims import claim_job

Submit = Callable[[], str]


def test_a_model_that_is_still_inspected_is_not_ready(database: Database, project: str, spec: SliceSpec) -> None:
    with database.transaction() as session:
        model = Catalog(session, project).add(ModelRow, NewAsset("m", {}, {}), Blob("d" * 64, 1))
        with pytest.raises(NotReadyError, match="still being inspected"):
            JobService(session, project, max_attempts=3).submit(spec.model_copy(update={"model_id": model.id}))


def test_a_rejected_model_is_a_conflict_that_says_why(database: Database, project: str, spec: SliceSpec) -> None:
    with database.transaction() as session:
        model = Catalog(session, project).add(ModelRow, NewAsset("m", {}, {}), Blob("d" * 64, 1))
        reject(model, {"detail": "it holds NaN"})
        with pytest.raises(ConflictError, match="it holds NaN"):
            JobService(session, project, max_attempts=3).submit(spec.model_copy(update={"model_id": model.id}))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"input_shape": [3, 8, 8], "categories": 10}, r"shape \[1, 8, 8\], the dataset has \[3, 8, 8\]"),
        ({"input_shape": [1, 8, 8], "categories": 7}, "number of categories 10, the dataset has 7"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused_before_any_work(
    database: Database, project: str, spec: SliceSpec, facts: dict[str, object], message: str
) -> None:
    with database.transaction() as session:
        Catalog(session, project).get(DatasetRow, spec.dataset_id).facts = facts
        with pytest.raises(InvalidInputError, match=message) as caught:
            JobService(session, project, max_attempts=3).submit(spec)
        assert caught.value.errors[0].pointer == "/dataset_id"


def test_a_model_of_one_output_is_a_regression_which_no_dataset_can_be(
    database: Database, project: str, spec: SliceSpec
) -> None:
    with database.transaction() as session:
        for kind, asset_id in ((ModelRow, spec.model_id), (DatasetRow, spec.dataset_id)):
            Catalog(session, project).get(kind, asset_id).facts = FACTS | {"categories": 1}
        with pytest.raises(InvalidInputError, match="one output, as a regression has") as caught:
            JobService(session, project, max_attempts=3).submit(spec)
        assert caught.value.errors[0].pointer == "/model_id"


@pytest.mark.parametrize(("strategy", "accepted"), [("deeparc", False), ("semantic", True)])
def test_a_stored_slice_by_deeparc_needs_a_dataset(
    database: Database, project: str, spec: SliceSpec, strategy: str, accepted: bool
) -> None:
    with database.transaction() as session:
        service = JobService(session, project, max_attempts=3)
        made_by = service.submit(spec.model_copy(update={"slicing": SlicingParams(strategy=strategy)}))
        held = claim_job(session, made_by.id, owner="me", lease_s=30)
        output = completion.Output("slice.safetensors", "application/octet-stream", Blob("d" * 64, 1))
        completion.succeed(session, held, result={}, versions={}, outputs=[output])
        session.refresh(made_by)
        (artifact,) = service.artifacts_of([made_by])
        stored = RestructureSpec(kind="restructure", model_id=spec.model_id, slice_id=artifact.id)
        if accepted:
            assert service.submit(stored).status == "queued"
            return
        with pytest.raises(InvalidInputError, match="fitted to samples") as caught:
            service.submit(stored)
        assert caught.value.errors[0].pointer == "/dataset_id"
        with_data = stored.model_copy(update={"dataset_id": spec.dataset_id})
        assert service.submit(with_data).status == "queued"
        with pytest.raises(InvalidInputError, match="drops whole layers") as caught:
            service.submit(with_data.model_copy(update={"reconstruct": "least_squares"}))
        assert caught.value.errors[0].pointer == "/reconstruct"


def test_another_project_sees_neither_model_nor_job(database: Database, spec: SliceSpec, submit: Submit) -> None:
    job_id = submit()
    with database.transaction() as session:
        other = JobService(session, ensure_project(session, "other"), max_attempts=3)
        with pytest.raises(NotFoundError):
            other.submit(spec)
        for act in (other.get, other.cancel, other.retry):
            with pytest.raises(NotFoundError):
                act(job_id)
        assert other.list(before=None, limit=10) == []


def test_cancelling_a_queued_job_ends_it_at_once(database: Database, project: str, submit: Submit) -> None:
    job_id = submit()
    with database.transaction() as session:
        assert JobService(session, project, max_attempts=3).cancel(job_id).status == "cancelled"
    with database.transaction() as session:
        assert leases.claim_next(session, "compute", owner="me", lease_s=30) is None


def test_cancelling_an_ended_job_changes_nothing(database: Database, project: str, submit: Submit) -> None:
    job_id = submit()
    for _ in range(2):
        with database.transaction() as session:
            job = JobService(session, project, max_attempts=3).cancel(job_id)
    assert (job.status, job.event_count) == ("cancelled", 2)


def test_retrying_a_failed_job_gives_it_fresh_attempts(database: Database, project: str, submit: Submit) -> None:
    job_id = submit()
    with database.transaction() as session:
        held = claim_job(session, job_id, owner="me", lease_s=30)
        completion.fail(session, held, {"code": "x"})
    with database.transaction() as session:
        job = JobService(session, project, max_attempts=3).retry(job_id)
    assert (job.status, job.error, job.attempt, job.attempt_limit) == ("queued", None, 1, 4)


def test_a_job_under_way_cannot_be_retried(database: Database, project: str, submit: Submit) -> None:
    job_id = submit()
    with database.transaction() as session, pytest.raises(ConflictError, match="is queued"):
        JobService(session, project, max_attempts=3).retry(job_id)
    assert read(database, job_id).event_count == 1


def test_what_a_failed_job_left_is_listed_until_another_attempt_ends(
    database: Database, project: str, submit: Submit
) -> None:
    job_id = submit()

    def end(name: str, error: dict[str, str] | None) -> None:
        with database.transaction() as session:
            held = claim_job(session, job_id, owner="me", lease_s=30)
            outputs = [completion.Output(name, "application/octet-stream", Blob("d" * 64, 1), role="model")]
            if error is None:
                completion.succeed(session, held, result={}, versions={}, outputs=outputs)
            else:
                completion.fail(session, held, error, outputs)

    def listed() -> list[str]:
        with database.transaction() as session:
            service = JobService(session, project, max_attempts=3)
            return [artifact.name for artifact in service.artifacts_of([service.get(job_id)])]

    end("last_good.safetensors", {"code": "training_diverged"})
    assert listed() == ["last_good.safetensors"]
    with database.transaction() as session:
        (stored,) = session.scalars(select(ArtifactRow.id))
        assert session.scalars(select(ModelRow).where(ModelRow.produced_by_job_id == job_id)).all() == []
        JobService(session, project, max_attempts=3).retry(job_id)
    assert listed() == []
    end("checkpoint.safetensors", None)
    assert listed() == ["checkpoint.safetensors"]
    with database.transaction() as session:
        assert Catalog(session, project).artifact(stored).name == "last_good.safetensors"


def test_a_job_cancelled_before_its_retry_began_shows_nothing_of_the_failed_attempt(
    database: Database, project: str, submit: Submit
) -> None:
    job_id = submit()
    with database.transaction() as session:
        held = claim_job(session, job_id, owner="me", lease_s=30)
        left = completion.Output("report.json", "application/json", Blob("e" * 64, 1))
        completion.fail(session, held, {"code": "diverged"}, [left])
    with database.transaction() as session:
        service = JobService(session, project, max_attempts=3)
        service.retry(job_id)
        assert service.artifacts_of([service.cancel(job_id)]) == []
