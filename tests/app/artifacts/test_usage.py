"""Bytes of a project: the same bytes once, what was deleted not at all, and never another project's."""

import pytest

from app.artifacts.blobs import announce
from app.artifacts.catalog import Catalog, NewAsset, accept
from app.artifacts.orm import DatasetRow, ModelRow
from app.artifacts.store import Blob
from app.artifacts.usage import holds, stored_bytes
from app.db import Database
from app.projects.keys import ensure_project

SOURCE, CANONICAL = Blob("a" * 64, 100), Blob("b" * 64, 70)


@pytest.fixture
def project(database: Database) -> str:
    with database.transaction() as session:
        return ensure_project(session, "mine")


def test_the_same_bytes_count_once_and_what_was_deleted_not_at_all(database: Database, project: str) -> None:
    with database.transaction() as session:
        catalog = Catalog(session, project)
        assert stored_bytes(session, project) == 0
        for blob in (SOURCE, CANONICAL):
            announce(session, blob)
        model = catalog.add(ModelRow, NewAsset("m", {}, {}), SOURCE)
        session.flush()
        assert stored_bytes(session, project) == 100
        accept(model, digest=CANONICAL.digest, size_bytes=CANONICAL.size_bytes, facts={})
        dataset = catalog.add(DatasetRow, NewAsset("d", {}, {}), SOURCE)
        session.flush()
        assert stored_bytes(session, project) == 170
        catalog.delete(ModelRow, model.id)
        session.flush()
        assert stored_bytes(session, project) == 100
        catalog.delete(DatasetRow, dataset.id)
        session.flush()
        assert stored_bytes(session, project) == 0


def test_a_project_holds_what_it_uploaded_itself(database: Database, project: str) -> None:
    with database.transaction() as session:
        announce(session, SOURCE)
        Catalog(session, project).add(ModelRow, NewAsset("m", {}, {}), SOURCE)
        assert holds(session, project, SOURCE.digest, 100)
        assert not holds(session, project, SOURCE.digest, 101)
        assert not holds(session, ensure_project(session, "other"), SOURCE.digest, 100)
        assert stored_bytes(session, ensure_project(session, "other")) == 0
