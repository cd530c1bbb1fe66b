"""Bringing the database's schema to the version of the code, by one process at a time."""

from functools import cache
from pathlib import Path
from typing import Literal

import structlog
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

import migrations
from app.artifacts import orm as artifacts_orm
from app.db import Base, Database
from app.jobs import orm as jobs_orm
from app.jobs import tally, workers
from app.projects import orm as projects_orm
from app.webhooks import orm as webhooks_orm

TABLES = (projects_orm, webhooks_orm, artifacts_orm, jobs_orm, tally, workers)
"""Importing these modules is what fills Base.metadata."""

SchemaState = Literal["ok", "newer", "not migrated"]

log = structlog.get_logger(__name__)

_LOCK = 7_301_984_220
"""Any number that nobody else uses for an advisory lock on this database."""


def _config() -> Config:
    (folder,) = migrations.__path__
    config = Config()
    config.set_main_option("script_location", str(Path(folder)))
    return config


def migrate(database: Database) -> None:
    """Apply what is missing. Processes that start together wait for the one that does it.

    A database that a later version has migrated is left alone: in a rolling upgrade, and after going back, both
    versions work on it.
    """
    config = _config()
    with database.engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        config.attributes["connection"] = connection
        revision = MigrationContext.configure(connection).get_current_revision()
        if _state(revision) == "newer":
            log.warning("database.newer_than_this_code", revision=revision)
            return
        command.upgrade(config, "head")


def is_current(database: Database) -> bool:
    """Whether the schema is the one this code was written for."""
    return schema_state(database) == "ok"


def schema_state(database: Database) -> SchemaState:
    """Whether the schema is this code's, or that of a later version, which goes on serving this one, or an earlier."""
    with database.engine.connect() as connection:
        return _state(MigrationContext.configure(connection).get_current_revision())


def _state(revision: str | None) -> SchemaState:
    known = _revisions()
    if revision == known[0]:
        return "ok"
    return "not migrated" if revision is None or revision in known else "newer"


@cache
def _revisions() -> tuple[str, ...]:
    """Every version that this code knows, the latest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def differences(database: Database) -> list[str]:
    """What the tables in the database and the models in the code disagree about; empty if nothing."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": False})
        return [repr(difference) for difference in compare_metadata(context, Base.metadata)]
