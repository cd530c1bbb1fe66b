"""What clients may do with webhooks: register, look, change, rotate the secret, send again."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.errors import ConflictError, NotFoundError
from app.ids import new_id
from app.projects.audit import record
from app.settings import Settings
from app.webhooks.addresses import check_url
from app.webhooks.disabling import disable
from app.webhooks.fanout import MAX_TRIES
from app.webhooks.orm import DeliveryRow, WebhookRow
from app.webhooks.signing import new_secret

MAX_WEBHOOKS = 20
"""Of one project: every event is written once for each."""

_FOR_CHANGE = {"key_share": True}
"""Does not hold up transactions that write deliveries for it."""


class WebhookService:
    """One project's webhooks; what belongs to others does not exist here. The caller commits."""

    def __init__(self, session: Session, project_id: str, settings: Settings) -> None:
        self._session = session
        self._project_id = project_id
        self._settings = settings

    def create(self, url: str, events: Sequence[str]) -> WebhookRow:
        """Have `url` told about `events`.

        Raises:
            InvalidInputError: the url cannot be sent to.
            ConflictError: the project has as many webhooks as it may have.
        """
        check_url(url, self._settings)
        count = select(func.count()).select_from(WebhookRow).where(WebhookRow.project_id == self._project_id)
        if self._session.execute(count).scalar_one() >= MAX_WEBHOOKS:
            raise ConflictError(
                f"The project has {MAX_WEBHOOKS} webhooks, and may not have more.",
                hint="DELETE one that is not needed, or have one receiver pass events on.",
            )
        row = WebhookRow(
            id=new_id("whk"), project_id=self._project_id, url=url, events=list(events), secret=new_secret()
        )
        self._session.add(row)
        self._session.flush()
        self._session.refresh(row)
        self._record("create", row.id, events=row.events)
        return row

    def list(self) -> Sequence[WebhookRow]:
        """All of them, newest first."""
        query = select(WebhookRow).where(WebhookRow.project_id == self._project_id)
        return self._session.scalars(query.order_by(WebhookRow.id.desc())).all()

    def get(self, webhook_id: str, *, lock: bool | dict[str, bool] = False) -> WebhookRow:
        """One webhook.

        Raises:
            NotFoundError: this project has none with that id.
        """
        row = self._session.get(WebhookRow, webhook_id, with_for_update=lock)
        if row is None or row.project_id != self._project_id:
            raise NotFoundError(
                f"There is no webhook {webhook_id!r} in this project.", hint="Check the id and the API key."
            )
        return row

    def change(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        enabled: bool | None = None,
    ) -> WebhookRow:
        """Send elsewhere, tell of other events, or enable it again after it was disabled.

        Raises:
            NotFoundError: this project has none with that id.
            InvalidInputError: the url cannot be sent to.
        """
        row = self.get(webhook_id, lock=_FOR_CHANGE)
        if url is not None:
            check_url(url, self._settings)
            row.url = url
        if events is not None:
            row.events = list(events)
        if enabled is False:
            disable(self._session, row, "A client disabled it.")
        elif enabled:
            row.disabled_at, row.disabled_reason = None, None
        if enabled or url is not None:
            row.failures, row.failing_since, row.paused_until = 0, None, None
        self._session.flush()
        self._record("change", webhook_id, another_url=url is not None, events=events and list(events), enabled=enabled)
        return row

    def rotate(self, webhook_id: str, *, overlap_s: float) -> WebhookRow:
        """Make a new secret. For `overlap_s` messages carry a signature by the old one too.

        Raises:
            NotFoundError: this project has none with that id.
        """
        row = self.get(webhook_id, lock=_FOR_CHANGE)
        row.previous_secret, row.secret = row.secret, new_secret()
        row.previous_until = self._now() + timedelta(seconds=overlap_s)
        self._session.flush()
        self._record("rotate", webhook_id)
        return row

    def delete(self, webhook_id: str) -> None:
        """Forget it, with its deliveries.

        Raises:
            NotFoundError: this project has none with that id.
        """
        self._session.delete(self.get(webhook_id, lock=True))
        self._record("delete", webhook_id)

    def deliveries(
        self, webhook_id: str, *, before: str | None, limit: int, status: str | None = None
    ) -> Sequence[DeliveryRow]:
        """At most `limit` of its deliveries, newest first, older than the one called `before`.

        Raises:
            NotFoundError: this project has no such webhook.
        """
        query = select(DeliveryRow).where(DeliveryRow.webhook_id == self.get(webhook_id).id)
        if before is not None:
            query = query.where(DeliveryRow.event_id < before)
        if status is not None:
            query = query.where(DeliveryRow.status == status)
        return self._session.scalars(query.order_by(DeliveryRow.event_id.desc()).limit(limit)).all()

    def redeliver(self, webhook_id: str, event_id: str) -> DeliveryRow:
        """Send a message again, with its id, and with fresh tries; one that waits is sent at once.

        Raises:
            NotFoundError: this project has no such webhook or delivery.
            ConflictError: the webhook is disabled.
        """
        webhook = self.get(webhook_id, lock=_FOR_CHANGE)
        delivery = self._session.get(DeliveryRow, (webhook_id, event_id), with_for_update=True)
        if delivery is None:
            raise NotFoundError(
                f"The webhook {webhook_id} has no delivery {event_id!r}.", hint="Settled deliveries are kept 30 days."
            )
        if webhook.disabled_at is not None:
            raise ConflictError(
                f"The webhook {webhook_id} is disabled: {webhook.disabled_reason}",
                hint='Enable it first: PATCH with {"enabled": true}.',
            )
        webhook.paused_until = None
        mine = (DeliveryRow.webhook_id == webhook_id, DeliveryRow.event_id == event_id)
        fresh = {"status": "pending", "tries_limit": DeliveryRow.tries + MAX_TRIES, "due_at": func.clock_timestamp()}
        self._session.execute(update(DeliveryRow).where(*mine).values(**fresh))
        self._session.refresh(delivery)
        self._record("redeliver", webhook_id, event_id=event_id)
        return delivery

    def _record(self, change: str, webhook_id: str, **details: Any) -> None:
        """Into the audit log. An address may hold a secret, and is left out."""
        record(self._session, self._project_id, f"webhook.{change}", webhook_id, **details)

    def _now(self) -> datetime:
        now: datetime = self._session.execute(select(func.clock_timestamp())).scalar_one()
        return now
