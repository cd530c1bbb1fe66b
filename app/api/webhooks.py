"""`/v1/webhooks`: have an address of yours told what happens to jobs."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, StringConstraints

from app.api.context import Answer, Context, Limit
from app.api.problems import documented
from app.api.schemas.pages import Page, page
from app.jobs.specs import Strict
from app.webhooks.fanout import EventType
from app.webhooks.orm import DeliveryRow, WebhookRow

DAY_S = 24 * 3600.0

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

WebhookId = Annotated[str, StringConstraints(pattern=r"^whk_[0-9a-z]{26}$")]
EventId = Annotated[str, StringConstraints(pattern=r"^evt_[0-9a-z]{26}$")]
Url = Annotated[
    str,
    StringConstraints(min_length=1, max_length=2000),
    Field(description="https:// and a host on the public internet. Redirects are not followed."),
]
Events = Annotated[list[EventType], Field(min_length=1, max_length=20)]


class WebhookCreate(Strict):
    """Where to send what."""

    url: Url
    events: Events = Field(default=["job.succeeded", "job.failed", "job.cancelled"], description="What to be told of.")


class WebhookChange(Strict):
    """What is left out stays as it is."""

    url: Url | None = None
    events: Events | None = None
    enabled: bool | None = Field(default=None, description="`true` also after the service has disabled it.")


class Rotation(Strict):
    """How the old secret goes."""

    overlap_s: float = Field(
        default=DAY_S, ge=0, le=7 * DAY_S, description="So long messages are signed with the old secret too."
    )


class WebhookRead(BaseModel):
    """A webhook. `failures` counts rounds of failed tries since a message was last taken."""

    id: str
    url: str
    events: list[str]
    enabled: bool
    disabled_at: datetime | None
    disabled_reason: str | None
    failures: int
    failing_since: datetime | None
    paused_until: datetime | None
    previous_secret_until: datetime | None
    created_at: datetime
    links: dict[str, str]

    @classmethod
    def of(cls, row: WebhookRow, **more: Any) -> "WebhookRead":
        """From its row."""
        base = f"/v1/webhooks/{row.id}"
        return cls(
            id=row.id,
            url=row.url,
            events=row.events,
            enabled=row.disabled_at is None,
            disabled_at=row.disabled_at,
            disabled_reason=row.disabled_reason,
            failures=row.failures,
            failing_since=row.failing_since,
            paused_until=row.paused_until,
            previous_secret_until=row.previous_until,
            created_at=row.created_at,
            links={"self": base, "deliveries": f"{base}/deliveries", "rotate": f"{base}/rotate"},
            **more,
        )


class WebhookWithSecret(WebhookRead):
    """A webhook with what its messages are signed with. Only the answers that make a secret show it."""

    secret: str


class Try(BaseModel):
    """One sending of a message: the receiver's status code and the beginning of its answer, or why there is none."""

    number: int
    at: datetime
    duration_ms: int
    status_code: int | None
    response: str | None
    error: str | None


class DeliveryRead(BaseModel):
    """One message to one webhook. `id` is the header `webhook-id` of every try."""

    id: str
    type: str
    job_id: str
    status: Literal["pending", "delivered", "failed"]
    tries: int
    next_try_at: datetime | None
    delivered_at: datetime | None
    created_at: datetime
    body: dict[str, Any]
    log: list[Try]
    links: dict[str, str]

    @classmethod
    def of(cls, row: DeliveryRow) -> "DeliveryRead":
        """From its row."""
        return cls(
            id=row.event_id,
            type=row.event_type,
            job_id=row.subject_id,
            status=row.status,
            tries=row.tries,
            next_try_at=row.due_at if row.status == "pending" else None,
            delivered_at=row.delivered_at,
            created_at=row.created_at,
            body=row.body,
            log=[Try(**entry) for entry in row.log],
            links={"redeliver": f"/v1/webhooks/{row.webhook_id}/deliveries/{row.event_id}/redeliver"},
        )


@router.post(
    "",
    operation_id="create_webhook",
    status_code=HTTPStatus.CREATED,
    response_model=WebhookWithSecret,
    responses=documented(HTTPStatus.CONFLICT),
)
def create_webhook(body: WebhookCreate, context: Context) -> JSONResponse:
    """Register a receiver. Messages are signed as Standard Webhooks has it, with the secret in this answer."""

    def create(session: Any) -> Answer:
        row = context.webhooks(session).create(body.url, body.events)
        shown = WebhookWithSecret.of(row, secret=row.secret)
        return Answer(HTTPStatus.CREATED, shown.model_dump(mode="json"), f"/v1/webhooks/{row.id}")

    return context.once(body.model_dump(mode="json"), create)


@router.get("", operation_id="list_webhooks", response_model=list[WebhookRead])
def list_webhooks(context: Context) -> list[WebhookRead]:
    """The project's webhooks, newest first."""
    with context.reading() as session:
        return [WebhookRead.of(row) for row in context.webhooks(session).list()]


@router.get(
    "/{webhook_id}",
    operation_id="get_webhook",
    response_model=WebhookRead,
    responses=documented(HTTPStatus.NOT_FOUND),
)
def get_webhook(webhook_id: WebhookId, context: Context) -> WebhookRead:
    """One webhook."""
    with context.reading() as session:
        return WebhookRead.of(context.webhooks(session).get(webhook_id))


@router.patch(
    "/{webhook_id}",
    operation_id="change_webhook",
    response_model=WebhookRead,
    responses=documented(HTTPStatus.NOT_FOUND),
)
def change_webhook(webhook_id: WebhookId, body: WebhookChange, context: Context) -> WebhookRead:
    """Send elsewhere, tell of other events, disable, or enable again."""
    with context.transaction() as session:
        row = context.webhooks(session).change(webhook_id, url=body.url, events=body.events, enabled=body.enabled)
        return WebhookRead.of(row)


@router.delete(
    "/{webhook_id}",
    operation_id="delete_webhook",
    status_code=HTTPStatus.NO_CONTENT,
    responses=documented(HTTPStatus.NOT_FOUND),
)
def delete_webhook(webhook_id: WebhookId, context: Context) -> None:
    """Forget it, with its deliveries."""
    with context.transaction() as session:
        context.webhooks(session).delete(webhook_id)


@router.post(
    "/{webhook_id}/rotate",
    operation_id="rotate_webhook_secret",
    response_model=WebhookWithSecret,
    responses=documented(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
)
def rotate_webhook_secret(webhook_id: WebhookId, context: Context, body: Rotation = Rotation()) -> JSONResponse:
    """Make a new secret. For a while messages carry two signatures, so that the receiver can change over."""

    def rotate(session: Any) -> Answer:
        row = context.webhooks(session).rotate(webhook_id, overlap_s=body.overlap_s)
        return Answer(HTTPStatus.OK, WebhookWithSecret.of(row, secret=row.secret).model_dump(mode="json"))

    return context.once(body.model_dump(mode="json"), rotate)


@router.get(
    "/{webhook_id}/deliveries",
    operation_id="list_webhook_deliveries",
    response_model=Page[DeliveryRead],
    responses=documented(HTTPStatus.NOT_FOUND),
)
def list_webhook_deliveries(
    webhook_id: WebhookId,
    context: Context,
    status: Literal["pending", "delivered", "failed"] | None = None,
    cursor: Annotated[EventId | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Limit = 50,
) -> Page[DeliveryRead]:
    """What was sent and what came of it, newest first; kept for 30 days."""
    with context.reading() as session:
        rows = context.webhooks(session).deliveries(webhook_id, before=cursor, limit=limit + 1, status=status)
        return page([DeliveryRead.of(row) for row in rows], [row.event_id for row in rows], limit)


@router.post(
    "/{webhook_id}/deliveries/{event_id}/redeliver",
    operation_id="redeliver_webhook",
    status_code=HTTPStatus.ACCEPTED,
    response_model=DeliveryRead,
    responses=documented(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
)
def redeliver_webhook(webhook_id: WebhookId, event_id: EventId, context: Context) -> JSONResponse:
    """Send a message again, now. It keeps its id, by which a receiver that already has it can tell."""

    def redeliver(session: Any) -> Answer:
        row = context.webhooks(session).redeliver(webhook_id, event_id)
        return Answer(HTTPStatus.ACCEPTED, DeliveryRead.of(row).model_dump(mode="json"))

    return context.once(None, redeliver)
