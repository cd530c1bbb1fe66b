"""One message over a real connection."""

import socket
import ssl
import threading

import pytest
import trustme

from app.settings import Settings
from app.webhooks.sending import SNIPPET_BYTES, Sender
from tests.app.webhooks.conftest import Receiver
from tests.app.webhooks.test_addresses import lookups


def test_an_answer_is_kept_in_its_beginning(sender: Sender, receiver: Receiver) -> None:
    receiver.answer = b"\x00\xff" + b"x" * 5_000_000
    outcome = sender.send(receiver.url(), b'{"a": 1}', {"webhook-id": "evt_1"})
    assert (outcome.status_code, outcome.error, len(outcome.response or "")) == (200, None, SNIPPET_BYTES)
    assert "\x00" not in (outcome.response or "")
    assert (receiver.messages[0].path, receiver.messages[0].body) == ("/hook", b'{"a": 1}')
    assert receiver.messages[0].headers["content-type"] == "application/json"


def test_a_redirect_is_not_followed(sender: Sender, receiver: Receiver) -> None:
    receiver.status, receiver.headers = 302, {"Location": receiver.url(path="/elsewhere")}
    outcome = sender.send(receiver.url(), b"{}", {})
    assert (outcome.status_code, outcome.is_success) == (302, False)
    assert [message.path for message in receiver.messages] == ["/hook"]


def test_a_receiver_that_dribbles_is_cut_off(settings: Settings, receiver: Receiver) -> None:
    """Each read alone is fast enough; all together are not."""
    receiver.dribble_s, receiver.answer = 0.1, b"x" * 100
    hasty = Sender(settings.model_copy(update={"webhook_timeout_s": 0.5}))
    outcome = hasty.send(receiver.url(), b"{}", {})
    assert outcome.error == "No answer within 0.5 s."
    assert 400 < outcome.duration_ms < 3000


@pytest.mark.parametrize("answer", [b"", b"no HTTP at all\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000])
def test_what_is_no_http_is_an_error(sender: Sender, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                try:
                    while not connection.recv(65536).endswith(b"{}"):
                        pass
                    connection.sendall(answer)
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        outcome = sender.send(f"http://127.0.0.1:{server.getsockname()[1]}/", b"{}", {})
        thread.join()
    assert outcome.status_code is None
    assert "Error" in (outcome.error or "")


def test_nobody_listening_is_an_error(sender: Sender) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "ConnectError" in (sender.send(f"http://127.0.0.1:{port}/", b"{}", {}).error or "")


@pytest.mark.parametrize(("certified", "is_success"), [("hooks.example.org", True), ("other.example.org", False)])
def test_tls_verifies_the_name_and_not_the_address(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, certified: str, is_success: bool
) -> None:
    lookups(monkeypatch, [["127.0.0.1"]])
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(ours)
    authority.issue_cert(certified).configure_cert(theirs)
    asked: list[str | None] = []
    theirs.sni_callback = lambda _, name, __: asked.append(name)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            try:
                with theirs.wrap_socket(connection, server_side=True) as secure:
                    received = b""
                    while not received.endswith(b"\r\n\r\n{}"):
                        received += secure.recv(65536)
                    secure.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            except OSError:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://hooks.example.org:{server.getsockname()[1]}/"
        outcome = Sender(settings, tls=ours).send(url, b"{}", {})
        thread.join()
    assert outcome.is_success == is_success
    assert asked == ["hooks.example.org"]
    assert is_success or "certificate verify failed" in (outcome.error or "").lower()
