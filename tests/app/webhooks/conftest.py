"""A receiver on loopback, and a project whose webhooks may reach it."""

from collections.abc import Callable, Iterator
from ipaddress import ip_network

import pytest

from app.db import Database
from app.settings import Settings
from app.webhooks.orm import DeliveryRow, WebhookRow
from app.webhooks.sending import Sender
from app.webhooks.service import WebhookService
from tests.app.jobs.conftest import project, spec, submit  # noqa: F401 fixtures
from tests.app.webhooks.receiver import Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Loopback is allowed, as an operator would for an internal receiver."""
    loopback = [ip_network("127.0.0.1/32")]
    update = {"webhook_allow_http": True, "webhook_allowed_networks": loopback, "webhook_timeout_s": 2.0}
    return settings.model_copy(update=update)


@pytest.fixture
def sender(settings: Settings) -> Sender:
    return Sender(settings)


@pytest.fixture
def webhook(database: Database, settings: Settings, project: str, receiver: Receiver) -> str:  # noqa: F811
    """The id of a webhook that leads to the receiver and wants every terminal event."""
    with database.transaction() as session:
        service = WebhookService(session, project, settings)
        return service.create(receiver.url(), ["job.succeeded", "job.failed", "job.cancelled"]).id


@pytest.fixture
def read_deliveries(database: Database) -> Callable[[], list[DeliveryRow]]:
    """All deliveries, oldest first."""

    def read() -> list[DeliveryRow]:
        with database.transaction() as session:
            return list(session.query(DeliveryRow).order_by(DeliveryRow.event_id))

    return read


def read_webhook(database: Database, webhook_id: str) -> WebhookRow:
    with database.transaction() as session:
        return session.get_one(WebhookRow, webhook_id)
