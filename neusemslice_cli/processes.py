"""The service's processes, ready to run."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.db import Database
from app.embedded_postgres import database_url
from app.errors import ServiceError
from app.migrations import differences, migrate
from app.settings import Settings


@contextmanager
def migrated_database(settings: Settings) -> Iterator[Database]:
    """The deployment's database, at this version's schema."""
    with database_url(settings) as url:
        database = Database(url)
        try:
            migrate(database)
            yield database
        finally:
            database.dispose()


def check_migrations() -> None:
    """Apply every migration to an empty database and compare it with the models.

    Raises:
        ServiceError: they disagree.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), database_url=None)
        with migrated_database(settings) as database:
            found = differences(database)
    if found:
        raise ServiceError(
            "The migrations do not make the tables that the code describes: " + "; ".join(found),
            hint="Add a migration.",
        )
