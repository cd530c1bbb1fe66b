"""Deliveries that are due: taken, sent, settled. Any number of senders may work at once, in any number of processes.

A sender takes a delivery by one short transaction that counts the try and puts the due time behind the sending; no
transaction is open while it sends. Dies it, the delivery is due again at that time, and the receiver may see the same
message, with the same id, twice.
"""

import json
import random
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session

from app.db import Database, JsonObject
from app.settings import Settings
from app.webhooks.disabling import disable
from app.webhooks.orm import DeliveryRow, WebhookRow
from app.webhooks.sending import Outcome, Sender
from app.webhooks.signing import signature_headers

log = structlog.get_logger(__name__)

TAKEN_FOR_S = 120.0
"""A sender that has said nothing for so long is dead; looking a name up and sending take less."""
FIRST_WAIT_S, WAIT_FACTOR, LONGEST_WAIT_S = 5.0, 4.0, 12 * 3600.0
"""Between the tries of one delivery: 5 s, 20 s, 80 s … 12 h, each by up to a fifth more or less; ten tries are 32 h."""
LONGEST_PAUSE_S = 600.0
"""Between the rounds of tries at a webhook that takes nothing."""
LOG_KEPT = 20
DELIVERIES_KEPT = timedelta(days=30)


@dataclass(frozen=True)
class Taken:
    """A delivery that this sender alone may send now."""

    webhook_id: str
    event_id: str
    number: int
    """Which try it is."""
    url: str
    body: JsonObject
    secrets: tuple[str, ...]


def deliver_next(settings: Settings, database: Database, sender: Sender) -> bool:
    """Send the delivery that is due longest and settle what came of it; False if none is due."""
    with database.transaction() as session:
        taken = take(session)
    if taken is None:
        return False
    body = json.dumps(taken.body, separators=(",", ":")).encode()
    headers = signature_headers(taken.event_id, int(time.time()), body, taken.secrets)
    outcome = sender.send(taken.url, body, headers)
    with database.transaction() as session:
        settle(session, taken, outcome, disable_after_s=settings.webhook_disable_after_s)
    names = {"webhook_id": taken.webhook_id, "event_id": taken.event_id, "number": taken.number}
    log.info("webhook.tried", **names, status=outcome.status_code, error=outcome.error, ms=outcome.duration_ms)
    return True


def take(session: Session) -> Taken | None:
    """The right to send the delivery that is due longest, for a while; None if none is due."""
    now = func.clock_timestamp()
    is_open = (WebhookRow.disabled_at.is_(None), or_(WebhookRow.paused_until.is_(None), WebhookRow.paused_until <= now))
    query = (
        select(DeliveryRow, WebhookRow, (WebhookRow.previous_until > now).label("is_rotating"))
        .join(WebhookRow, WebhookRow.id == DeliveryRow.webhook_id)
        .where(DeliveryRow.status == "pending", DeliveryRow.due_at <= now, *is_open)
        .order_by(DeliveryRow.due_at)
        .limit(1)
        .with_for_update(of=DeliveryRow, skip_locked=True)
    )
    found = session.execute(query).one_or_none()
    if found is None:
        return None
    delivery, webhook, is_rotating = found
    mine = update(DeliveryRow).where(*_is(delivery.webhook_id, delivery.event_id))
    counted = mine.values(tries=DeliveryRow.tries + 1, due_at=_from_now(TAKEN_FOR_S)).returning(DeliveryRow.tries)
    number = session.execute(counted).scalar_one()
    secrets = [webhook.secret]
    if is_rotating and webhook.previous_secret is not None:
        secrets.append(webhook.previous_secret)
    return Taken(webhook.id, delivery.event_id, number, webhook.url, delivery.body, tuple(secrets))


def settle(session: Session, taken: Taken, outcome: Outcome, *, disable_after_s: float) -> None:
    """Write down what came of a try, and what follows. A sender that comes too late changes nothing."""
    webhook = session.get(WebhookRow, taken.webhook_id, with_for_update={"key_share": True})
    mine = (*_is(taken.webhook_id, taken.event_id), DeliveryRow.tries == taken.number, DeliveryRow.status == "pending")
    delivery = session.scalars(select(DeliveryRow).where(*mine).with_for_update()).one_or_none()
    if webhook is None or delivery is None:
        return
    now: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    delivery.log = [*delivery.log, _entry(taken, outcome, now.isoformat())][-LOG_KEPT:]
    if outcome.is_success:
        delivery.status, delivery.delivered_at = "delivered", now
        webhook.failures, webhook.failing_since, webhook.paused_until = 0, None, None
        return
    if delivery.tries >= delivery.tries_limit:
        delivery.status = "failed"
    else:
        delivery.due_at = now + timedelta(seconds=wait_s(taken.number))
    session.flush()
    _hold_back(webhook, now)
    if outcome.is_gone:
        disable(session, webhook, "The receiver answered 410 Gone.")
    elif now - (webhook.failing_since or now) > timedelta(seconds=disable_after_s):
        disable(session, webhook, f"Nothing has been taken since {webhook.failing_since:%Y-%m-%d %H:%M} UTC.")


def wait_s(number: int) -> float:
    """Seconds from the try with this number (from 1) to the next, with jitter."""
    return min(FIRST_WAIT_S * WAIT_FACTOR ** (number - 1), LONGEST_WAIT_S) * random.uniform(0.8, 1.2)  # noqa: S311


def forget_old(database: Database) -> None:
    """Remove deliveries that were settled long ago."""
    settled = DeliveryRow.status != "pending"
    with database.transaction() as session:
        session.execute(
            delete(DeliveryRow).where(settled, DeliveryRow.created_at < func.clock_timestamp() - DELIVERIES_KEPT)
        )


def _hold_back(webhook: WebhookRow, now: datetime) -> None:
    """A webhook that takes nothing is tried less and less."""
    if webhook.paused_until is None or webhook.paused_until <= now:  # the first failure of a round that several make
        pause_s = min(FIRST_WAIT_S * 2.0**webhook.failures, LONGEST_PAUSE_S)
        webhook.failures += 1
        webhook.paused_until = now + timedelta(seconds=pause_s)
    webhook.failing_since = webhook.failing_since or now


def _entry(taken: Taken, outcome: Outcome, at: str) -> JsonObject:
    return {
        "number": taken.number,
        "at": at,
        "duration_ms": outcome.duration_ms,
        "status_code": outcome.status_code,
        "response": outcome.response,
        "error": outcome.error,
    }


def _is(webhook_id: str, event_id: str) -> tuple[ColumnElement[bool], ...]:
    return (DeliveryRow.webhook_id == webhook_id, DeliveryRow.event_id == event_id)


def _from_now(seconds: float) -> ColumnElement[object]:
    return func.clock_timestamp() + timedelta(seconds=seconds)
