"""API keys: `nss_<id>_<secret>`, 256 random bits of secret, of which the database keeps the SHA-256."""

import hashlib
import hmac
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import func, or_, select, tuple_, update
from sqlalchemy.orm import Session

from app.errors import AuthenticationError, ConflictError, ForbiddenError, NotFoundError
from app.projects.audit import record
from app.projects.directory import ensure_project
from app.projects.orm import ApiKeyRow, ProjectRow

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
"""`read`: look at and download; `write`: upload, submit, cancel, delete; `admin`: keys and the audit log."""
USUAL_SCOPES: tuple[Scope, ...] = ("read", "write")
DEFAULT_PROJECT = "default"
PREFIX = "nss"
USE_NOTED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class Principal:
    """Who is asking."""

    project_id: str
    scopes: frozenset[str]
    key_id: str | None = None
    """None on a keyless server."""
    requests_per_minute: int | None = None
    """The project's limit."""
    valid_s: float | None = None
    """Seconds until the secret that was shown stops working; None if nothing ends it."""


def create_key(
    session: Session,
    *,
    project: str,
    name: str,
    scopes: Sequence[Scope] = USUAL_SCOPES,
    valid_days: float | None = None,
) -> str:
    """Make a key for `project` and return it; it cannot be shown again."""
    _, key = issue_key(session, ensure_project(session, project), name=name, scopes=scopes, valid_days=valid_days)
    return key


def issue_key(
    session: Session,
    project_id: str,
    *,
    name: str,
    scopes: Sequence[Scope],
    valid_days: float | None = None,
    giver: Collection[str] = SCOPES,
) -> tuple[ApiKeyRow, str]:
    """A new key's row and the key itself. `giver` are the scopes of whoever makes it.

    Raises:
        ForbiddenError: it would have a scope that its giver has not.
    """
    _check_gift(scopes, giver)
    secret = _new_secret()
    row = ApiKeyRow(
        id=secrets.token_hex(6),
        project_id=project_id,
        name=name,
        secret_sha256=_digest(secret),
        scopes=[scope for scope in SCOPES if scope in scopes],
        expires_at=None if valid_days is None else now_of(session) + timedelta(days=valid_days),
    )
    session.add(row)
    session.flush()
    expires_at = row.expires_at.isoformat() if row.expires_at else None
    record(session, project_id, "key.create", row.id, name=name, scopes=row.scopes, expires_at=expires_at)
    return row, _key(row, secret)


def rotate_key(session: Session, row: ApiKeyRow, *, grace: timedelta, giver: Collection[str] = SCOPES) -> str:
    """Give the key a new secret and return it. The present secret works until `grace` has passed; an earlier one ends.

    Raises:
        ForbiddenError: the key has a scope that its giver has not.
        ConflictError: it was revoked or has expired.
    """
    _check_gift(row.scopes, giver)
    now = now_of(session)
    if not _is_valid(row, now):
        raise ConflictError(f"The API key {row.id} was revoked or has expired.", hint="Make a new key.")
    secret = _new_secret()
    row.previous_sha256, row.previous_until = row.secret_sha256, now + grace
    row.secret_sha256 = _digest(secret)
    record(session, row.project_id, "key.rotate", row.id, previous_until=row.previous_until.isoformat())
    return _key(row, secret)


def revoke_key(session: Session, key_id: str, *, project_id: str | None = None) -> None:
    """Make a key of this project (or of any) useless from now on; one that was revoked stays so.

    Raises:
        NotFoundError: there is no such key.
    """
    row = find_key(session, key_id, project_id=project_id)
    if row.revoked_at is None:
        row.revoked_at = now_of(session)
        record(session, row.project_id, "key.revoke", row.id)


def find_key(session: Session, key_id: str, *, project_id: str | None = None) -> ApiKeyRow:
    """The row of a key of this project, or of any, held until the transaction ends.

    Raises:
        NotFoundError: there is no such key.
    """
    row = session.get(ApiKeyRow, key_id, with_for_update=True)
    if row is None or project_id not in (None, row.project_id):
        where, hint = ("", "`neusemslice keys list` shows them.")
        if project_id is not None:
            where, hint = (" in this project", "Check the id and the API key.")
        raise NotFoundError(f"There is no API key {key_id!r}{where}.", hint=hint)
    return row


def authenticate(session: Session, key: str) -> Principal:
    """Who holds `key`; notes that it was used.

    Raises:
        AuthenticationError: it is no key of ours, has expired, or was revoked. The message does not say which.
    """
    prefix, _, rest = key.partition("_")
    key_id, _, secret = rest.partition("_")
    row = session.get(ApiKeyRow, key_id) if prefix == PREFIX else None
    shown, now = _digest(secret), now_of(session)
    is_current = hmac.compare_digest(row.secret_sha256 if row else bytes(32), shown)
    is_previous = hmac.compare_digest((row and row.previous_sha256) or bytes(32), shown)
    if row is None or not (is_current or (is_previous and _in_grace(row, now))) or not _is_valid(row, now):
        raise AuthenticationError("The API key is not valid.", hint="Make one with `neusemslice keys create`.")
    ends = [end for end in (row.expires_at, None if is_current else row.previous_until) if end is not None]
    _note_use(session, row, now)
    return Principal(
        row.project_id,
        frozenset(row.scopes),
        row.id,
        session.get_one(ProjectRow, row.project_id).requests_per_minute,
        min((end - now).total_seconds() for end in ends) if ends else None,
    )


def list_keys(session: Session, *, project: str | None = None) -> Sequence[tuple[ApiKeyRow, str]]:
    """Every key, or every one of the project called `project`, with its project's name, oldest first."""
    query = select(ApiKeyRow, ProjectRow.name).join(ProjectRow, ProjectRow.id == ApiKeyRow.project_id)
    if project is not None:
        query = query.where(ProjectRow.name == project)
    return [(row, name) for row, name in session.execute(query.order_by(ApiKeyRow.created_at))]


def keys_of(session: Session, project_id: str, *, before: str | None, limit: int) -> Sequence[ApiKeyRow]:
    """At most `limit` keys of a project, newest first, older than the one called `before`."""
    age = tuple_(ApiKeyRow.created_at, ApiKeyRow.id)
    query = select(ApiKeyRow).where(ApiKeyRow.project_id == project_id)
    if before is not None:
        earlier = select(ApiKeyRow.created_at).where(ApiKeyRow.id == before, ApiKeyRow.project_id == project_id)
        query = query.where(age < tuple_(earlier.scalar_subquery(), before))
    return session.scalars(query.order_by(ApiKeyRow.created_at.desc(), ApiKeyRow.id.desc()).limit(limit)).all()


def now_of(session: Session) -> datetime:
    """The database's time."""
    now: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return now


def _note_use(session: Session, row: ApiKeyRow, now: datetime) -> None:
    """At most one write a minute; concurrent requests need not wait for each other's."""
    earlier = now - USE_NOTED_EVERY
    if row.last_used_at is None or row.last_used_at < earlier:
        unnoted = or_(ApiKeyRow.last_used_at.is_(None), ApiKeyRow.last_used_at < earlier)
        free = select(ApiKeyRow.id).where(ApiKeyRow.id == row.id, unnoted).with_for_update(skip_locked=True)
        session.execute(update(ApiKeyRow).where(ApiKeyRow.id.in_(free)).values(last_used_at=now))


def _check_gift(scopes: Collection[str], giver: Collection[str]) -> None:
    missing = sorted(set(scopes) - set(giver))
    if missing:
        raise ForbiddenError(
            f"Your API key lacks {', '.join(missing)}, and cannot give what it has not.",
            hint="Ask for fewer scopes, or use a key that has them.",
        )


def _is_valid(row: ApiKeyRow, now: datetime) -> bool:
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > now)


def _in_grace(row: ApiKeyRow, now: datetime) -> bool:
    return row.previous_until is not None and row.previous_until > now


def _key(row: ApiKeyRow, secret: str) -> str:
    return f"{PREFIX}_{row.id}_{secret}"


def _new_secret() -> str:
    return secrets.token_hex(32)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
