"""What several commands have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.orm import Session

from app.settings import Settings

DataDir = Annotated[Path | None, typer.Option(help="Folder of stored bytes and the embedded Postgres.")]


def make_settings(data_dir: Path | None, **values: object) -> Settings:
    """The settings of the environment, with what was given on the command line instead."""
    given = {name: value for name, value in {"data_dir": data_dir, **values}.items() if value is not None}
    return Settings(**given)  # type: ignore[arg-type]


@contextmanager
def administration(data_dir: Path | None) -> Iterator[Session]:
    """A transaction on the deployment's database, in the name of whoever runs this command."""
    from app.projects.audit import act_as, command_line_actor
    from neusemslice_cli import processes

    with processes.migrated_database(make_settings(data_dir)) as database, database.transaction() as session:
        act_as(session, command_line_actor())
        yield session
