"""From an event to its deliveries: an outbox, written in the transaction that the event is from."""

from typing import Literal, get_args

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db import JsonObject
from app.ids import new_id
from app.webhooks.orm import DeliveryRow, WebhookRow

EventType = Literal["job.queued", "job.started", "job.succeeded", "job.failed", "job.cancelled"]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)
MAX_TRIES = 10


def record(session: Session, project_id: str, event_type: str, subject_id: str, data: JsonObject) -> None:
    """Have every webhook told that wants to know: exactly one delivery each, if the caller's transaction commits."""
    wants = (
        WebhookRow.project_id == project_id,
        WebhookRow.disabled_at.is_(None),
        WebhookRow.events.contains([event_type]),
    )
    query = select(WebhookRow.id, func.clock_timestamp()).where(*wants).with_for_update(read=True, key_share=True)
    found = session.execute(query).all()  # the lock keeps them from being deleted before their deliveries are there
    if not found:
        return
    event_id = new_id("evt")
    body = {"type": event_type, "timestamp": found[0][1].isoformat(), "data": data}
    session.add_all(
        DeliveryRow(
            webhook_id=webhook_id,
            event_id=event_id,
            event_type=event_type,
            subject_id=subject_id,
            body=body,
            tries_limit=MAX_TRIES,
        )
        for webhook_id, _ in found
    )
    session.flush()
