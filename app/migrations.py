"""Bringing the database's schema to the version of the code, by one process at a time."""

from pathlib import Path

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
from app.projects import orm as projects_orm

TABLES = (projects_orm, artifacts_orm, jobs_orm)
"""Importing these modules is what fills Base.metadata."""

_LOCK = 7_301_984_220
"""Any number that nobody else uses for an advisory lock on this database."""


def _config() -> Config:
    (folder,) = migrations.__path__
    config = Config()
    config.set_main_option("script_location", str(Path(folder)))
    return config


def migrate(database: Database) -> None:
    """Apply what is missing. Processes that start together wait for the one that does it."""
    config = _config()
    with database.engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def is_current(database: Database) -> bool:
    """Whether the schema is the one this code needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == head


def differences(database: Database) -> list[str]:
    """What the tables in the database and the models in the code disagree about; empty if nothing."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": False})
        return [repr(difference) for difference in compare_metadata(context, Base.metadata)]
