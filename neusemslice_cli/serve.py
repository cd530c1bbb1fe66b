"""`neusemslice serve`: the API in this process, a worker in another one that is kept running."""

import ipaddress
import math
import os

import structlog
import uvicorn

from app.db import Database
from app.errors import InvalidInputError
from app.logging import configure_logging
from app.main import create_app
from app.projects.audit import act_as, command_line_actor
from app.projects.keys import DEFAULT_PROJECT, SCOPES, create_key, list_keys
from app.settings import Settings
from neusemslice_cli.companions import Companion, keep_running
from neusemslice_cli.graceful import GracefulServer, ignore_stop_signals
from neusemslice_cli.processes import migrated_database
from worker.stop_signals import StopSignals

log = structlog.get_logger(__name__)

KEEP_ALIVE_S = 75
"""Longer than proxies and clients keep an idle connection: who closes it must be the one who would use it next."""


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
        app, stop = create_app(settings, database), StopSignals()
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(settings.drain_grace_s),
        )

        def begin() -> None:
            app.state.services.listener.end_waits()
            stop.receive()

        server = GracefulServer(config, begin=begin, hurry=stop.receive, notice_s=settings.drain_notice_s)
        ignore_stop_signals()
        with keep_running(settings, database, [Companion((command,)) for command in commands], stop):
            server.run()


def show_first_key(settings: Settings, database: Database) -> None:
    """A database without any key gets one, in a file that only this user can read."""
    path = settings.data_dir / "api-key"
    with database.transaction() as session:
        if settings.keyless or list_keys(session):
            return
        act_as(session, command_line_actor())
        key = create_key(session, project=DEFAULT_PROJECT, name="made at first start", scopes=SCOPES)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(key + "\n")
    log.info("serve.first_key", file=str(path))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
