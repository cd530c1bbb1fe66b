"""Limits that are held while something is weighed against them."""

import threading

from sqlalchemy import select

from app.db import Database
from app.projects.directory import ensure_project, find_project, set_limits
from app.projects.orm import ProjectRow
from app.projects.quotas import hold_limit


def test_who_weighs_holds_up_the_same_projects_weighing_and_nothing_else(database: Database) -> None:
    with database.transaction() as session:
        limited, other = ensure_project(session, "limited"), ensure_project(session, "other")
        for name in ("limited", "other"):
            set_limits(session, find_project(session, name), {"max_queued_jobs": 1, "max_stored_bytes": 1})
    weighed = threading.Event()

    def weigh() -> None:
        with database.transaction() as session:
            hold_limit(session, limited, "max_stored_bytes")
            weighed.set()

    with database.transaction() as session:
        assert hold_limit(session, limited, "max_queued_jobs") == 1
        thread = threading.Thread(target=weigh)
        thread.start()
        with database.transaction() as another:
            row = select(ProjectRow.id).where(ProjectRow.id == limited)
            assert another.scalar(row.with_for_update(key_share=True, skip_locked=True)) == limited
            assert hold_limit(another, other, "max_queued_jobs") == 1
        assert not weighed.is_set()
    thread.join()
    assert weighed.is_set()
