"""A webhook that is told nothing any more."""

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.webhooks.orm import DeliveryRow, WebhookRow

log = structlog.get_logger(__name__)


def disable(session: Session, webhook: WebhookRow, reason: str) -> None:
    """Record no more events for it. What waits is given up; once it is enabled, it can be sent again."""
    webhook.disabled_at = session.execute(select(func.clock_timestamp())).scalar_one()
    webhook.disabled_reason = reason
    waiting = (DeliveryRow.webhook_id == webhook.id, DeliveryRow.status == "pending")
    session.execute(update(DeliveryRow).where(*waiting).values(status="failed"))
    log.warning("webhook.disabled", webhook_id=webhook.id, reason=reason)
