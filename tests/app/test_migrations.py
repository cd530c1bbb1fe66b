"""The schema on a real Postgres."""

import threading
from collections.abc import Iterator

import psycopg
import pytest

from app.db import Database
from app.migrations import differences, is_current, migrate
from tests.conftest import with_database


@pytest.fixture
def empty(postgres_url: str) -> Iterator[str]:
    """The address of a database without any table."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty")
        yield with_database(postgres_url, "empty")
        connection.execute("DROP DATABASE empty WITH (FORCE)")


def test_four_processes_that_start_together_migrate_once(empty: str) -> None:
    databases = [Database(empty) for _ in range(4)]
    assert not is_current(databases[0])
    failures: list[Exception] = []

    def start(database: Database) -> None:
        try:
            migrate(database)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(is_current(database) for database in databases)
    assert differences(databases[0]) == []
    for database in databases:
        database.dispose()


def test_a_model_that_changed_without_a_migration_is_noticed(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs DROP COLUMN progress")
    (found,) = differences(database)
    assert "progress" in found
