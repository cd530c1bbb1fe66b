"""An analysis is found again by all that it rests on, in its own project alone."""

from collections.abc import Callable
from typing import Any

import pytest

from app.artifacts.catalog import Catalog
from app.artifacts.orm import DatasetRow, ModelRow
from app.artifacts.store import Blob
from app.db import Database
from app.jobs import completion
from app.jobs.analyses import find, key_of
from app.jobs.leases import Claim
from app.jobs.service import JobService
from app.jobs.specs import ReadaptSpec, RestructureSpec, SliceSpec, SlicingParams
from app.jobs.specs.readapt import AttackParams
from app.projects.keys import ensure_project
from tests.claims import claim_job

ANALYSIS = completion.Output("analysis.safetensors", "application/octet-stream", Blob("e" * 64, 1), role="analysis")


def test_slice_restructuring_and_readaptation_of_a_model_rest_on_one_analysis(
    database: Database, spec: SliceSpec
) -> None:
    restructure = RestructureSpec(
        kind="restructure",
        model_id=spec.model_id,
        dataset_id=spec.dataset_id,
        slicing=SlicingParams(strategy="categorywise", target_compression=0.3),
        branches="scatter",
        batch_size=7,
    )
    readapt = ReadaptSpec(kind="readapt", model_id=spec.model_id, dataset_id=spec.dataset_id, attack=AttackParams())
    stored = RestructureSpec(kind="restructure", model_id=spec.model_id, slice_id="art_" + "0" * 26)
    with database.transaction() as session:
        assert key_of(session, spec) == key_of(session, restructure) == key_of(session, readapt) is not None
        assert key_of(session, readapt.model_copy(update={"method": "full"})) is None
        assert key_of(session, stored) is None


DIFFERENT: list[dict[str, Any]] = [
    {"seed": 1},
    {"limit_per_category": 100},
    {"slicing": SlicingParams(metric="avg")},
    {"slicing": SlicingParams(strategy="global")},
    {"slicing": SlicingParams(strategy="random")},
    {"slicing": SlicingParams(strategy="deeparc")},
    {"slicing": SlicingParams(estimator="biased")},
    {"slicing": SlicingParams(landscape="flattened")},
    {"slicing": SlicingParams(samples_per_category=100)},
    {"slicing": SlicingParams(max_accuracy_drop=0.1)},
    {"slicing": SlicingParams(max_accuracy_drop=0.1), "seed": 1},
]


def test_whatever_changes_the_analysis_changes_its_key(database: Database, spec: SliceSpec) -> None:
    with database.transaction() as session:
        keys = {key_of(session, spec.model_copy(update=change)) for change in [{}, *DIFFERENT]}
        for table, asset_id in ((ModelRow, spec.model_id), (DatasetRow, spec.dataset_id)):
            session.get_one(table, asset_id).digest = table.__tablename__
            keys.add(key_of(session, spec))
    assert len(keys) == 1 + len(DIFFERENT) + 2


@pytest.mark.parametrize(
    "change",
    [
        {"slicing": SlicingParams(threshold=0.5, increment=3)},
        {"slicing": SlicingParams(target_compression=0.5)},
        {"batch_size": 1},
        {"sweep": [0.5]},
        {"metadata": {"a": "b"}},
    ],
)
def test_the_cut_the_target_and_batches_do_not(database: Database, spec: SliceSpec, change: dict[str, Any]) -> None:
    with database.transaction() as session:
        assert key_of(session, spec.model_copy(update=change)) == key_of(session, spec)


def test_deeparc_draws_nothing(database: Database, spec: SliceSpec) -> None:
    by_layer = spec.model_copy(update={"slicing": SlicingParams(strategy="deeparc")})
    with database.transaction() as session:
        assert key_of(session, by_layer) == key_of(session, by_layer.model_copy(update={"seed": 9}))


@pytest.mark.parametrize("failed", [False, True])
def test_an_analysis_is_kept_with_the_end_of_its_job_and_is_no_artifact(
    database: Database, project: str, spec: SliceSpec, submit: Callable[[], str], failed: bool
) -> None:
    job_id = submit()
    with database.transaction() as session:
        held = claim_job(session, job_id, owner="me", lease_s=30)
        assert find(session, held, spec) is None
        if failed:
            completion.fail(session, held, {"code": "target_unreachable"}, [ANALYSIS])
        else:
            completion.succeed(session, held, result={}, versions={}, outputs=[ANALYSIS])
    with database.transaction() as session:
        service = JobService(session, project, max_attempts=3)
        assert service.artifacts_of([service.get(job_id)]) == []
        assert Catalog(session, project).artifacts_of([(job_id, 1)]) == []
        assert find(session, held, spec) == "e" * 64
        stranger = Claim("job", 1, 1, False, "slice", ensure_project(session, "other"), held.spec)
        assert find(session, stranger, spec) is None
