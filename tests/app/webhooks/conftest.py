"""A receiver on loopback, and a project whose webhooks may reach it."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network

import pytest

from app.db import Database
from app.settings import Settings
from app.webhooks.orm import DeliveryRow, WebhookRow
from app.webhooks.sending import Sender
from app.webhooks.service import WebhookService
from tests.app.jobs.conftest import project, spec, submit  # noqa: F401 fixtures


@dataclass
class Message:
    """A request as it came in."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """A real HTTP server that keeps what it is sent and answers as it is told."""

    port: int = 0
    status: int = 200
    answer: bytes = b"thank you"
    headers: dict[str, str] = field(default_factory=dict)
    dribble_s: float = 0
    messages: list[Message] = field(default_factory=list)

    def url(self, host: str = "127.0.0.1", path: str = "/hook") -> str:
        return f"http://{host}:{self.port}{path}"

    def ids(self) -> list[str]:
        return [message.headers["webhook-id"] for message in self.messages]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    told = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            told.messages.append(Message(self.path, headers, body))
            try:
                self.send_response(told.status)
                for name, value in told.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(told.answer)))
                self.end_headers()
                for number in range(len(told.answer) if told.dribble_s else 0):
                    self.wfile.write(told.answer[number : number + 1])
                    time.sleep(told.dribble_s)
                if not told.dribble_s:
                    self.wfile.write(told.answer)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    told.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield told
    server.shutdown()
    server.server_close()
    thread.join()


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
