"""`/v1/keys`: the project's API keys, for keys with the scope `admin`."""

from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, StringConstraints

from app.api.context import Answer, Context, Limit
from app.api.problems import documented
from app.api.schemas.pages import Page, page
from app.jobs.specs import Name, Strict
from app.projects.keys import USUAL_SCOPES, Scope, find_key, issue_key, keys_of, revoke_key, rotate_key
from app.projects.orm import ApiKeyRow

VALID_DAYS_MAX = 3650
GRACE_MAX_S = 30 * 24 * 3600

router = APIRouter(prefix="/v1/keys", tags=["keys"])

KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
KeyCursor = Annotated[KeyId | None, Query(description="`next_cursor` of the page before.")]


class KeyCreate(Strict):
    """What a new key is to be."""

    name: Name
    scopes: list[Scope] = Field(default=list(USUAL_SCOPES), min_length=1, description="Only such as your own key has.")
    valid_days: float | None = Field(default=None, gt=0, le=VALID_DAYS_MAX, description="Default: without end.")


class KeyRotate(Strict):
    """How a key gets a new secret."""

    grace_s: float = Field(
        default=24 * 3600, ge=0, le=GRACE_MAX_S, description="Seconds that the present secret goes on working."
    )


class KeyRead(BaseModel):
    """A key without its secret. `last_used_at` is right to within a minute."""

    id: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    previous_secret_until: datetime | None
    last_used_at: datetime | None

    @classmethod
    def of(cls, row: ApiKeyRow) -> "KeyRead":
        """From its row."""
        fields = {name: getattr(row, name) for name in cls.model_fields if hasattr(row, name)}
        return cls(**fields, previous_secret_until=row.previous_until)


class KeyWithSecret(KeyRead):
    """A key as it is shown once. When the answer is repeated for an Idempotency-Key, `key` is null."""

    key: str | None


@router.get("", operation_id="list_keys", response_model=Page[KeyRead])
def list_keys(context: Context, cursor: KeyCursor = None, limit: Limit = 50) -> Page[KeyRead]:
    """The project's keys, newest first, also those that were revoked or have expired."""
    with context.reading() as session:
        rows = keys_of(session, context.principal.project_id, before=cursor, limit=limit + 1)
        return page([KeyRead.of(row) for row in rows], [row.id for row in rows], limit)


@router.post(
    "",
    operation_id="create_key",
    status_code=HTTPStatus.CREATED,
    response_model=KeyWithSecret,
    responses=documented(HTTPStatus.BAD_REQUEST),
)
def create_key(wanted: Annotated[KeyCreate, Body()], context: Context) -> JSONResponse:
    """Make a key. It is shown now and never again."""

    def create(session: Any) -> Answer:
        row, key = issue_key(
            session,
            context.principal.project_id,
            name=wanted.name,
            scopes=wanted.scopes,
            valid_days=wanted.valid_days,
            giver=context.principal.scopes,
        )
        session.refresh(row)
        return _answer(HTTPStatus.CREATED, row, key)

    return context.once(wanted.model_dump(mode="json"), create)


@router.post(
    "/{key_id}/rotate",
    operation_id="rotate_key",
    response_model=KeyWithSecret,
    responses=documented(HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
)
def rotate(key_id: KeyId, context: Context, wanted: Annotated[KeyRotate, Body()] = KeyRotate()) -> JSONResponse:
    """Give a key a new secret, shown now and never again. The present one works until `grace_s` have passed."""

    def change(session: Any) -> Answer:
        row = find_key(session, key_id, project_id=context.principal.project_id)
        grace = timedelta(seconds=wanted.grace_s)
        key = rotate_key(session, row, grace=grace, giver=context.principal.scopes)
        return _answer(HTTPStatus.OK, row, key)

    answer = context.once(wanted.model_dump(mode="json"), change)
    context.services.keys.forget(key_id)
    return answer


@router.delete(
    "/{key_id}",
    operation_id="revoke_key",
    status_code=HTTPStatus.NO_CONTENT,
    responses=documented(HTTPStatus.NOT_FOUND),
)
def revoke(key_id: KeyId, context: Context) -> None:
    """Make a key useless: here at once, in other API processes within `NEUSEMSLICE_KEY_CACHE_S` (5 s)."""
    with context.transaction() as session:
        revoke_key(session, key_id, project_id=context.principal.project_id)
    context.services.keys.forget(key_id)


def _answer(status: HTTPStatus, row: ApiKeyRow, key: str) -> Answer:
    read = KeyRead.of(row).model_dump(mode="json")
    return Answer(status, read | {"key": key}, kept_body=read | {"key": None})
