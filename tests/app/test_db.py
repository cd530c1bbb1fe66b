"""Pooled connections that the server has ended are replaced before anybody notices."""

from contextlib import ExitStack

import psycopg
import pytest
from sqlalchemy import text

from app.db import Database


@pytest.mark.parametrize("kind", ["transaction", "autocommit"])
def test_a_connection_that_the_server_has_ended_is_not_used_again(database: Database, kind: str) -> None:
    def backend() -> int:
        with getattr(database, kind)() as session:
            return int(session.execute(text("SELECT pg_backend_pid()")).scalar_one())

    with ExitStack() as several:
        for _ in range(3):
            several.enter_context(database.transaction()).execute(text("SELECT 1"))
    first = backend()
    with psycopg.connect(database.dsn, autocommit=True) as other:
        ended = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        assert len(other.execute(ended + " AND datname = current_database()").fetchall()) == 3
    assert [backend() for _ in range(3)] != [first] * 3


def test_autocommit_leaves_no_trace_on_a_connection(database: Database) -> None:
    with database.autocommit() as session:
        before = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with database.transaction() as session:
        assert session.execute(text("SELECT pg_backend_pid()")).scalar_one() == before
        session.execute(text("CREATE TABLE left_over (x int)"))
        session.rollback()
    with database.autocommit() as session:
        assert session.execute(text("SELECT to_regclass('left_over')")).scalar_one() is None
