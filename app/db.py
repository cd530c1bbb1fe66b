"""The connection to Postgres: one engine a process, one transaction a request or step."""

import select
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg
from sqlalchemy import DateTime, Engine, MetaData, create_engine, event, func, make_url
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from app.json_object import JsonObject

__all__ = ["CONNECTIONS", "Base", "Database", "JsonObject", "Timestamped"]

CONNECTIONS = 10
"""As many are kept; more are opened while more are needed."""
NOTICE_A_DEAD_PEER: dict[str, Any] = {"connect_timeout": 5, "tcp_user_timeout": 10_000, "keepalives_idle": 10}
_NOTICE_A_STOPPED_PEER = {"options": "-c idle_in_transaction_session_timeout=5min"}


class Base(DeclarativeBase):
    """Base of all tables; constraints get predictable names, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: DateTime(timezone=True), JsonObject: JSONB}  # noqa: RUF012 SQLAlchemy's own form


class Timestamped:
    """Adds the creation time, by the database's clock."""

    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class Database:
    """Sessions on one Postgres."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql+psycopg")
        self.engine: Engine = create_engine(
            self._url,
            pool_size=CONNECTIONS,
            max_overflow=40,
            connect_args=NOTICE_A_DEAD_PEER | _NOTICE_A_STOPPED_PEER,
            hide_parameters=True,  # what is stored has no place in the log of an error
        )
        event.listen(self.engine, "checkout", _refuse_if_gone)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._autocommitting = sessionmaker(self.engine.execution_options(isolation_level="AUTOCOMMIT"))

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits at the end of the block and rolls back on any exception."""
        with self._sessions.begin() as session:
            yield session

    @contextmanager
    def autocommit(self) -> Iterator[Session]:
        """A session for reading: each statement sees what is committed when it begins, as in a transaction, without the
        two round trips that make one. A statement that changes something does so at once.
        """
        with self._autocommitting() as session:
            yield session

    @property
    def url(self) -> str:
        """The address, to hand on to another process."""
        return self._url.render_as_string(hide_password=False)

    @property
    def dsn(self) -> str:
        """The address as psycopg itself takes it (for LISTEN)."""
        return self._url.set(drivername="postgresql").render_as_string(hide_password=False)

    def listen(self, *channels: str) -> psycopg.Connection:
        """A connection of its own that receives notifications on `channels`."""
        connection = psycopg.connect(self.dsn, autocommit=True, **NOTICE_A_DEAD_PEER)
        for channel in channels:
            connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
        return connection

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def _refuse_if_gone(connection: psycopg.Connection, *_: object) -> None:
    """Have a pooled connection replaced that the server has ended.

    Between statements a server is silent unless it goes: then its end of the socket says so, and looking there costs no
    round trip, as asking it before every transaction would.

    Raises:
        InvalidatePoolError: it has; so, very likely, have the others.
    """
    if connection.closed:
        raise InvalidatePoolError
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    if waiting.poll(0):
        raise InvalidatePoolError
