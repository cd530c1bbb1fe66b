"""A project with a ready model and dataset, and jobs on them."""

from collections.abc import Callable

import pytest

from app.artifacts.catalog import Catalog, NewAsset, accept
from app.artifacts.orm import DatasetRow, ModelRow
from app.artifacts.store import Blob
from app.db import Database
from app.jobs.orm import JobRow
from app.jobs.service import JobService
from app.jobs.specs import SliceSpec
from app.projects.keys import ensure_project

FACTS = {"input_shape": [1, 8, 8], "categories": 10}


@pytest.fixture
def project(database: Database) -> str:
    """A project's id."""
    with database.transaction() as session:
        return ensure_project(session, "default")


@pytest.fixture
def spec(database: Database, project: str) -> SliceSpec:
    """A slice job on a ready model and dataset."""
    with database.transaction() as session:
        catalog = Catalog(session, project)
        model = catalog.add(ModelRow, NewAsset("m", {"builder": "mlp"}, {}), Blob("a" * 64, 10))
        dataset = catalog.add(DatasetRow, NewAsset("d", {"format": "npz"}, {}), Blob("b" * 64, 10))
        for row in (model, dataset):
            accept(row, digest="c" * 64, size_bytes=20, facts=FACTS)
        return SliceSpec(kind="slice", model_id=model.id, dataset_id=dataset.id)


@pytest.fixture
def submit(database: Database, project: str, spec: SliceSpec) -> Callable[[], str]:
    """Queues a slice job and returns its id."""

    def do() -> str:
        with database.transaction() as session:
            return JobService(session, project, max_attempts=3).submit(spec).id

    return do


def read(database: Database, job_id: str) -> JobRow:
    """The job's row as it is now."""
    with database.transaction() as session:
        return session.get_one(JobRow, job_id)
