"""API keys: `nss_<id>_<secret>`, 256 random bits of secret, of which the database keeps the SHA-256."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.errors import AuthenticationError, NotFoundError
from app.ids import new_id
from app.projects.orm import ApiKeyRow, ProjectRow

Scope = Literal["read", "write"]
SCOPES: tuple[Scope, ...] = ("read", "write")
DEFAULT_PROJECT = "default"
PREFIX = "nss"


@dataclass(frozen=True)
class Principal:
    """Who is asking."""

    project_id: str
    scopes: frozenset[str]


def ensure_project(session: Session, name: str) -> str:
    """The id of the project called `name`, made if there is none."""
    session.execute(insert(ProjectRow).values(id=new_id("prj"), name=name).on_conflict_do_nothing())
    return session.execute(select(ProjectRow.id).where(ProjectRow.name == name)).scalar_one()


def create_key(
    session: Session, *, project: str, name: str, scopes: Sequence[Scope] = SCOPES, valid_days: float | None = None
) -> str:
    """Make a key for `project` and return it; it cannot be shown again."""
    key_id, secret = secrets.token_hex(6), secrets.token_hex(32)
    expires_at = None if valid_days is None else func.clock_timestamp() + timedelta(days=valid_days)
    values = {
        "id": key_id,
        "project_id": ensure_project(session, project),
        "name": name,
        "secret_sha256": _digest(secret),
        "scopes": list(scopes),
        "expires_at": expires_at,
    }
    session.execute(insert(ApiKeyRow).values(values))
    return f"{PREFIX}_{key_id}_{secret}"


def authenticate(session: Session, key: str) -> Principal:
    """Who holds `key`.

    Raises:
        AuthenticationError: it is no key of ours, has expired, or was revoked. The message does not say which.
    """
    prefix, _, rest = key.partition("_")
    key_id, _, secret = rest.partition("_")
    row = session.get(ApiKeyRow, key_id) if prefix == PREFIX else None
    expected = row.secret_sha256 if row is not None else bytes(32)
    if not hmac.compare_digest(expected, _digest(secret)) or row is None or not _is_valid(row, session):
        raise AuthenticationError("The API key is not valid.", hint="Make one with `neusemslice keys create`.")
    return Principal(row.project_id, frozenset(row.scopes))


def list_keys(session: Session) -> Sequence[tuple[ApiKeyRow, str]]:
    """Every key with its project's name, oldest first."""
    query = select(ApiKeyRow, ProjectRow.name).join(ProjectRow, ProjectRow.id == ApiKeyRow.project_id)
    return [(row, name) for row, name in session.execute(query.order_by(ApiKeyRow.created_at))]


def revoke_key(session: Session, key_id: str) -> None:
    """Make a key useless from now on.

    Raises:
        NotFoundError: there is no such key.
    """
    row = session.get(ApiKeyRow, key_id)
    if row is None:
        raise NotFoundError(f"There is no API key {key_id!r}.", hint="`neusemslice keys list` shows them.")
    row.revoked_at = _now(session)


def _is_valid(row: ApiKeyRow, session: Session) -> bool:
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > _now(session))


def _now(session: Session) -> datetime:
    now: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return now


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
