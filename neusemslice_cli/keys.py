"""`neusemslice keys`: API keys, straight in the database."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import typer

from neusemslice_cli.options import DataDir, administration

app = typer.Typer(no_args_is_help=True, help="API keys of the service.")


class ScopeName(StrEnum):
    """The scopes by name."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@app.command("create")
def create(
    project: Annotated[str, typer.Option(help="Project the key opens; made if there is none.")] = "default",
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    scope: Annotated[
        list[ScopeName] | None, typer.Option(help="What it may do; repeat for several. Default: read and write.")
    ] = None,
    *,
    read_only: Annotated[bool, typer.Option("--read-only", help="The same as --scope read.")] = False,
    valid_days: Annotated[float | None, typer.Option(help="Days until it expires.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it. It cannot be shown again."""
    from app.projects.keys import SCOPES, USUAL_SCOPES, create_key

    asked = ["read"] if read_only else list(scope or USUAL_SCOPES)
    scopes = [known for known in SCOPES if known in asked]
    with administration(data_dir) as session:
        key = create_key(session, project=project, name=name, scopes=scopes, valid_days=valid_days)
    typer.echo(key)


@app.command("list")
def show(
    project: Annotated[str | None, typer.Option(help="Only this project's.")] = None, data_dir: DataDir = None
) -> None:
    """Every key: id, project, scopes, state, last use, name."""
    from app.projects.keys import list_keys

    with administration(data_dir) as session:
        for row, project_name in list_keys(session, project=project):
            state = "revoked" if row.revoked_at else f"until {row.expires_at}" if row.expires_at else "valid"
            used = f"used {row.last_used_at:%Y-%m-%dT%H:%MZ}" if row.last_used_at else "unused"
            typer.echo(f"{row.id}  {project_name}  {','.join(row.scopes)}  {state}  {used}  {row.name}")


@app.command("rotate")
def rotate(
    key_id: str,
    grace_hours: Annotated[
        float, typer.Option(min=0, max=720, help="Hours that the present secret goes on working.")
    ] = 24,
    data_dir: DataDir = None,
) -> None:
    """Give a key a new secret and print it. It cannot be shown again."""
    from app.projects.keys import find_key, rotate_key

    with administration(data_dir) as session:
        key = rotate_key(session, find_key(session, key_id), grace=timedelta(hours=grace_hours))
    typer.echo(key)


@app.command("revoke")
def revoke(key_id: str, data_dir: DataDir = None) -> None:
    """Make a key useless. Running API processes notice within five seconds (NEUSEMSLICE_KEY_CACHE_S)."""
    from app.projects.keys import revoke_key

    with administration(data_dir) as session:
        revoke_key(session, key_id)
    typer.echo(f"{key_id} is revoked.")
