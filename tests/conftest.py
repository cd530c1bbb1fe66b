"""What all tests share: one real Postgres, a fresh migrated database for each test that asks for one."""

import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import structlog
from sqlalchemy import make_url

from app.db import Database
from app.embedded_postgres import database_url
from app.migrations import migrate
from app.settings import Settings

os.environ.pop("DATABASE_URL", None)
os.environ.pop("REDIS_URL", None)
os.environ["OMP_NUM_THREADS"] = (
    "1"  # torch reads it when it is loaded; the tests' small networks gain nothing from more
)
# Tracebacks as Python prints them: with every frame's values, as structlog would, one takes seconds.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Postgres for the session, with a migrated template database."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("postgres"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with database_url(settings) as url:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("CREATE DATABASE template_migrated")
            template = Database(with_database(url, "template_migrated"))
            migrate(template)
            template.dispose()
            yield url


@pytest.fixture(scope="session")
def new_database(postgres_url: str) -> Callable[[], str]:
    """Makes an empty migrated database and returns its address."""
    numbers = itertools.count()

    def make() -> str:
        name = f"test_{next(numbers)}"
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template_migrated")
        return with_database(postgres_url, name)

    return make


@pytest.fixture
def database(new_database: Callable[[], str]) -> Iterator[Database]:
    """An empty migrated database."""
    database = Database(new_database())
    yield database
    database.dispose()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with short times."""
    return Settings(data_dir=tmp_path, lease_s=2.0, heartbeat_s=0.1, poll_s=0.2, cancel_grace_s=0.3)


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    return make_url(url).set(database=name).render_as_string(hide_password=False)
