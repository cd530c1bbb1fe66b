"""Tables of who is told about events, and what became of each telling."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, JsonObject, Timestamped


class WebhookRow(Timestamped, Base):
    """An address that is told about a project's events."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    url: Mapped[str] = mapped_column(Text)
    events: Mapped[list[str]] = mapped_column(ARRAY(String))
    secret: Mapped[str]
    previous_secret: Mapped[str | None]
    previous_until: Mapped[datetime | None]
    """Until then messages are signed with the previous secret too."""

    failures: Mapped[int] = mapped_column(default=0)
    """Rounds of sending that failed since the last message was taken."""
    failing_since: Mapped[datetime | None]
    paused_until: Mapped[datetime | None]
    """Nothing is sent before: a receiver that is down must not use up the senders."""
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]


class DeliveryRow(Timestamped, Base):
    """One event for one webhook; written in the transaction that the event is from."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_due", "due_at", postgresql_where=text("status = 'pending'")),
        Index("ix_webhook_deliveries_settled", "created_at", postgresql_where=text("status <> 'pending'")),
    )

    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"), primary_key=True)
    event_id: Mapped[str] = mapped_column(primary_key=True)
    """The message's id, the same over all tries, so that receivers can tell repetitions."""
    event_type: Mapped[str]
    subject_id: Mapped[str]
    """What the event is about: a job."""
    body: Mapped[JsonObject]
    status: Mapped[str] = mapped_column(default="pending")
    tries: Mapped[int] = mapped_column(default=0)
    """Rises when a sender takes the delivery; only the one who took it last writes what came of it."""
    tries_limit: Mapped[int]
    due_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    """When to try next; while a sender has it, when it counts as lost with its sender."""
    log: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)
    delivered_at: Mapped[datetime | None]
