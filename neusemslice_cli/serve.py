"""`neusemslice serve`: the API in this process, a worker in another one that is kept running."""

import ipaddress
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import structlog
import uvicorn

from app.db import Database
from app.errors import InvalidInputError
from app.logging import configure_logging
from app.main import create_app
from app.projects.keys import DEFAULT_PROJECT, create_key, list_keys
from app.settings import Settings
from neusemslice_cli.processes import migrated_database

log = structlog.get_logger(__name__)

STOP_S = 10.0
RESTART_S = 0.5


def run_server(settings: Settings, *, api_only: bool) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        InvalidInputError: keyless, but reachable from other machines.
    """
    if settings.keyless and not is_loopback(settings.host):
        raise InvalidInputError(
            f"--keyless on {settings.host} would let everybody in.", hint="Listen on 127.0.0.1, or use API keys."
        )
    configure_logging()
    commands = [] if api_only else ["worker"] if settings.redis_url is None else ["worker", "relay"]
    with migrated_database(settings) as database:
        show_first_key(settings, database)
        config = uvicorn.Config(
            create_app(settings, database),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=3,
        )
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn stops on them, then raises them again for us
            signal.signal(number, lambda *_: None)
        with keep_running(settings, database, commands):
            uvicorn.Server(config).run()


def show_first_key(settings: Settings, database: Database) -> None:
    """A database without any key gets one, in a file that only this user can read."""
    path = settings.data_dir / "api-key"
    with database.transaction() as session:
        if settings.keyless or list_keys(session):
            return
        key = create_key(session, project=DEFAULT_PROJECT, name="made at first start")
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(key + "\n")
    log.info("serve.first_key", file=str(path))


@contextmanager
def keep_running(settings: Settings, database: Database, commands: list[str]) -> Iterator[None]:
    """Companion processes, started again whenever they end, for as long as the block runs."""
    stopping = Event()
    keepers = [Thread(target=_keep, args=(command, settings, database, stopping)) for command in commands]
    for keeper in keepers:
        keeper.start()
    try:
        yield
    finally:
        stopping.set()
        for keeper in keepers:
            keeper.join()


def _keep(command: str, settings: Settings, database: Database, stopping: Event) -> None:
    environment = os.environ | {"DATABASE_URL": database.url, "NEUSEMSLICE_DATA_DIR": str(settings.data_dir)}
    arguments = [sys.executable, "-m", "neusemslice_cli.main", command, "--parent", str(os.getpid())]
    while not stopping.is_set():
        process = subprocess.Popen(arguments, env=environment)
        while process.poll() is None and not stopping.wait(0.1):
            pass
        if process.poll() is not None and not stopping.is_set():
            log.error("serve.companion_ended", command=command, exit_code=process.returncode)
            stopping.wait(RESTART_S)
            continue
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
