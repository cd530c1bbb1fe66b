"""`neusemslice`: the service's processes, its administration, and slicing on a laptop without any service."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.errors import ServiceError
from neusemslice.errors import NeuSemSliceError
from neusemslice_cli import audit, comparing, files, incrementing, keys, projects, readapting
from neusemslice_cli.options import DataDir
from neusemslice_cli.options import make_settings as _settings

if TYPE_CHECKING:
    from worker.stop_signals import StopSignals

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
app.add_typer(keys.app, name="keys")
app.add_typer(projects.app, name="projects")
app.command("audit")(audit.show_audit)
app.command("slice")(files.slice_files)
app.command("restructure")(files.restructure_files)
app.command("evaluate")(files.evaluate_files)
app.command("readapt")(readapting.readapt_files)
app.command("increment")(incrementing.increment_files)
app.command("compare")(comparing.compare_files)

Parent = Annotated[int | None, typer.Option(hidden=True, help="End when this process ends.")]


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the demo's files go.")] = Path("demo-output"),
) -> None:
    """The whole service on real data, as an outside client would use it."""
    from neusemslice_cli.demo import run_demo

    run_demo(output)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. Default 8000.")] = None,
    data_dir: DataDir = None,
    *,
    keyless: Annotated[bool, typer.Option("--keyless", help="No API keys; only on loopback.")] = False,
    api_only: Annotated[bool, typer.Option("--api-only", help="Start no worker.")] = False,
) -> None:
    """The API, with a worker beside it."""
    from neusemslice_cli.serve import run_server

    settings = _settings(data_dir, host=host, port=port, keyless=keyless or None)
    run_server(settings, api_only=api_only)


@app.command()
def worker(
    data_dir: DataDir = None,
    queues: Annotated[str, typer.Option(help="The queues to take jobs from.")] = "inspect,compute",
    gpus: Annotated[
        str, typer.Option(help="`all`: a worker for each GPU. Or numbers such as `0,1`, or `none`.")
    ] = "all",
    concurrency: Annotated[int, typer.Option(min=1, help="Jobs of a queue at once, without a GPU. A GPU has one.")] = 1,
    parent: Parent = None,
    *,
    check: Annotated[bool, typer.Option("--check", help="Does a worker live on this machine?")] = False,
) -> None:
    """Work on queued jobs: through Celery if REDIS_URL is set, otherwise straight from the table."""
    from app.logging import configure_logging
    from worker.heartbeat_file import check_heartbeat

    if check:
        check_heartbeat(_settings(data_dir).data_dir, "worker")
        return
    from neusemslice_cli import processes
    from neusemslice_cli.workers import run_workers

    configure_logging()
    settings = _settings(data_dir)
    _end_with(parent)
    asked = {"queues": queues, "gpus": gpus}
    with processes.migrated_database(settings) as database:
        run_workers(settings, database, **asked, concurrency=concurrency, stop_signals=_stop_signals)


@app.command()
def relay(
    data_dir: DataDir = None,
    parent: Parent = None,
    *,
    check: Annotated[bool, typer.Option("--check", help="Does a relay live on this machine?")] = False,
) -> None:
    """With Redis: announce queued jobs, take jobs back from workers that fell silent, and send webhook messages."""
    from app.logging import configure_logging
    from worker.heartbeat_file import HeartbeatFile, check_heartbeat

    if check:
        check_heartbeat(_settings(data_dir).data_dir, "relay")
        return
    from app.queues import make_queue
    from neusemslice_cli import processes
    from worker.couriers import couriers
    from worker.maintenance import maintain

    configure_logging()
    settings = _settings(data_dir)
    _end_with(parent)
    stopping = _stop_signals().stopping
    with processes.migrated_database(settings) as database, couriers(settings, database, stopping):
        heartbeat = HeartbeatFile(settings.data_dir, "relay")
        maintain(settings, database, make_queue(settings, database), stopping, heartbeat)
        heartbeat.remove()


@app.command()
def migrate(
    data_dir: DataDir = None,
    *,
    check: Annotated[
        bool, typer.Option("--check", help="On a fresh database: do migrations and models agree?")
    ] = False,
) -> None:
    """Bring the database to this version. The other commands do it by themselves."""
    from neusemslice_cli import processes

    if check:
        processes.check_migrations()
        return
    with processes.migrated_database(_settings(data_dir)):
        typer.echo("The database is up to date.")


@app.command()
def gc(
    data_dir: DataDir = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove stored bytes that nothing needs any more. The service does it by itself from time to time."""
    from app.jobs.garbage import collect_garbage
    from neusemslice_cli import processes

    settings = _settings(data_dir)
    with processes.migrated_database(settings) as database:
        collected = collect_garbage(settings, database, dry_run=dry_run)
    for digest in collected.digests:
        typer.echo(digest)
    typer.echo(
        f"{'would remove' if dry_run else 'removed'} {collected.blobs} blobs of {collected.bytes} bytes, "
        f"{collected.uploads} uploads, {collected.analyses} analyses"
    )


def main() -> None:
    """Run the command line; expected errors become one line and exit code 1."""
    try:
        app()
    except (NeuSemSliceError, ServiceError) as error:
        hint = f"\n{error.hint}" if error.hint else ""
        typer.echo(f"error: {error.message}{hint}", err=True)
        sys.exit(1)
    except OSError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


def _end_with(parent: int | None) -> None:
    if parent is not None:
        from worker.parent import die_with_parent

        die_with_parent(parent)


def _stop_signals() -> "StopSignals":
    from worker.stop_signals import StopSignals

    signals = StopSignals()
    signals.listen()
    return signals


if __name__ == "__main__":
    main()
