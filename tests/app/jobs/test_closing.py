"""The end of a project."""

from collections.abc import Callable

import pytest
from sqlalchemy import select

from app.artifacts.orm import ModelRow
from app.artifacts.usage import stored_bytes
from app.db import Database
from app.errors import AuthenticationError, NotFoundError
from app.jobs.closing import delete_project
from app.projects.keys import authenticate, create_key
from app.projects.orm import AuditRow
from tests.app.jobs.conftest import read
from tests.claims import claim_job


def test_nothing_of_it_goes_on(database: Database, project: str, submit: Callable[[], str]) -> None:
    queued, running = submit(), submit()
    with database.transaction() as session:
        key, other = (create_key(session, project=name, name="") for name in ("default", "other"))
        claim_job(session, running, owner="test", lease_s=60)
    with database.transaction() as session:
        delete_project(session, "default")
    assert read(database, queued).status == "cancelled"
    assert read(database, running).cancel_requested
    with database.transaction() as session:
        assert stored_bytes(session, project) == 0
        assert all(model.deleted_at for model in session.scalars(select(ModelRow)))
        with pytest.raises(AuthenticationError):
            authenticate(session, key)
        authenticate(session, other)
        actions = session.scalars(select(AuditRow.action).where(AuditRow.object_id.in_((project, queued, running))))
        assert {"project.delete", "job.cancel"} <= set(actions)
        with pytest.raises(NotFoundError):
            delete_project(session, "default")
        assert authenticate(session, create_key(session, project="default", name="")).project_id != project
