"""`neusemslice projects`: who shares the service, and how much of it each may have."""

import re
from dataclasses import asdict
from typing import Annotated, Any

import typer

from neusemslice_cli.options import DataDir, administration

app = typer.Typer(no_args_is_help=True, help="Projects and their limits.")

UNLIMITED = "unlimited"
_UNITS = {"": 1, "B": 1, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3, "TIB": 1024**4}
_LIMIT_MAX = 2**31 - 1
_LABELS = {
    "max_running_jobs": "running",
    "max_queued_jobs": "queued",
    "max_stored_bytes": "stored",
    "requests_per_minute": "requests/min",
}


def parse_limit(text: str) -> int | str:
    """A number of 0 or more, or `unlimited`.

    Raises:
        typer.BadParameter: it is neither.
    """
    if text == UNLIMITED:
        return text
    if not text.isdecimal() or int(text) > _LIMIT_MAX:
        raise typer.BadParameter(f"{text!r} is no whole number up to {_LIMIT_MAX}; or say {UNLIMITED!r}.")
    return int(text)


def parse_bytes(text: str) -> int | str:
    """A number of bytes, also as `200GiB`, or `unlimited`.

    Raises:
        typer.BadParameter: it is neither.
    """
    if text == UNLIMITED:
        return text
    match = re.fullmatch(r"(\d{1,15})\s*([A-Za-z]*)", text)
    unit = _UNITS.get(match.group(2).upper()) if match else None
    if match is None or unit is None or int(match.group(1)) * unit >= 2**63:
        raise typer.BadParameter(f"{text!r} is no number of bytes such as 500MiB or 2TiB; or say {UNLIMITED!r}.")
    return int(match.group(1)) * unit


def parse_rate(text: str) -> int | str:
    """A number of 1 or more, or `unlimited`.

    Raises:
        typer.BadParameter: it is neither.
    """
    if parse_limit(text) == 0:
        raise typer.BadParameter("0 would lock the project out; revoke its keys instead.")
    return parse_limit(text)


@app.command("create")
def create(name: str, data_dir: DataDir = None) -> None:
    """Make a project. `keys create --project` does it too."""
    from app.projects.directory import create_project

    with administration(data_dir) as session:
        project_id = create_project(session, name).id
    typer.echo(project_id)


@app.command("list")
def show(data_dir: DataDir = None) -> None:
    """Every project: id, name, and what it uses of its limits."""
    from app.artifacts.usage import stored_bytes
    from app.jobs.queue_quota import count_jobs
    from app.projects.directory import Limits, list_projects

    with administration(data_dir) as session:
        for row in list_projects(session):
            jobs, limits = count_jobs(session, row.id), asdict(Limits.of(row))
            used = {
                "max_running_jobs": jobs.running,
                "max_queued_jobs": jobs.queued,
                "max_stored_bytes": stored_bytes(session, row.id),
            }
            shown = [
                f"{_LABELS[limit]} {f'{used[limit]}/' if limit in used else ''}{UNLIMITED if most is None else most}"
                for limit, most in limits.items()
            ]
            typer.echo(f"{row.id}  {row.name}  {'  '.join(shown)}")


@app.command("set")
def set_(
    name: str,
    max_running: Annotated[
        Any, typer.Option(parser=parse_limit, metavar="N", help="Jobs that may run at once, or `unlimited`.")
    ] = None,
    max_queued: Annotated[
        Any, typer.Option(parser=parse_limit, metavar="N", help="Jobs that may wait, or `unlimited`.")
    ] = None,
    max_stored: Annotated[
        Any, typer.Option(parser=parse_bytes, metavar="BYTES", help="Stored bytes, such as 200GiB, or `unlimited`.")
    ] = None,
    requests_per_minute: Annotated[
        Any, typer.Option(parser=parse_rate, metavar="N", help="HTTP requests of all keys together, or `unlimited`.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Set a project's limits; those that are not named stay."""
    from app.projects.directory import find_project, set_limits

    given = {
        "max_running_jobs": max_running,
        "max_queued_jobs": max_queued,
        "max_stored_bytes": max_stored,
        "requests_per_minute": requests_per_minute,
    }
    changes = {limit: None if most == UNLIMITED else most for limit, most in given.items() if most is not None}
    with administration(data_dir) as session:
        limits = asdict(set_limits(session, find_project(session, name), changes))
    for limit, most in limits.items():
        typer.echo(f"{limit}: {UNLIMITED if most is None else most}")


@app.command("delete")
def delete(
    name: str,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Revoke a project's keys, cancel its jobs, and delete what it stores."""
    from app.jobs.closing import delete_project

    if not yes:
        typer.confirm(f"Delete the project {name!r} with everything in it?", abort=True)
    with administration(data_dir) as session:
        delete_project(session, name)
    typer.echo(f"{name} is deleted.")
