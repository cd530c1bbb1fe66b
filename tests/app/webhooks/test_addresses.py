"""Messages never go into the service's own network, unless the operator says so."""

import socket
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from app.errors import InvalidInputError
from app.settings import Settings
from app.webhooks.addresses import AddressRefusedError, check_url, is_allowed, resolve
from app.webhooks.sending import Sender
from tests.app.webhooks.conftest import Receiver

PRIVATE = (
    "127.0.0.1 127.8.8.8 0.0.0.0 10.0.0.1 172.16.0.1 172.31.255.255 192.168.0.1 169.254.169.254 "
    "169.254.0.1 100.64.0.1 100.100.100.200 192.0.0.192 168.63.129.16 198.18.0.1 224.0.0.1 "
    "239.255.255.255 240.0.0.1 255.255.255.255 ::1 :: ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 "
    "64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 2002:7f00:1:: 2002:a9fe:a9fe:: "
    "2001:0:4136:e378:8000:63bf:f5ff:fffe fe80::1 fe80::1%lo fec0::1 fc00::1 fd00:ec2::254 ff02::1 "
    "ff0e::1 2001:db8::1"
)
PUBLIC = "8.8.8.8 1.1.1.1 93.184.216.34 172.32.0.1 2606:4700:4700::1111 2a00:1450::1 ::ffff:8.8.8.8 64:ff9b::808:808"


@pytest.mark.parametrize("address", PRIVATE.split())
def test_what_is_not_public_is_refused(address: str) -> None:
    assert not is_allowed(ip_address(address), [])


@pytest.mark.parametrize("address", PUBLIC.split())
def test_the_public_internet_is_allowed(address: str) -> None:
    assert is_allowed(ip_address(address), [])


def test_an_operator_may_allow_a_network_and_no_more() -> None:
    allowed = [ip_network("10.1.2.0/24"), ip_network("fd00:1::/32")]
    assert is_allowed(ip_address("10.1.2.200"), allowed)
    assert is_allowed(ip_address("::ffff:10.1.2.3"), allowed)
    assert is_allowed(ip_address("fd00:1::5"), allowed)
    assert not is_allowed(ip_address("10.1.3.1"), allowed)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.org/", "must begin with https://"),
        ("ftp://example.org/", "must begin with"),
        ("file:///etc/passwd", "must begin with"),
        ("https://", "must name a host"),
        ("https:///path", "must name a host"),
        ("https://example.org:0/", "must name a host"),
        ("https://example.org:99999/", "Port out of range"),
        ("https://user:password@example.org/", "no user"),
        ("https://example.org/#x", "fragment"),
        ("https://127.0.0.1/", "not on the public internet"),
        ("https://[::1]/", "not on the public internet"),
        ("https://[::1/", "Invalid IPv6"),
        ("https://169.254.169.254/latest/meta-data", "not on the public internet"),
        ("https://exämple.org/", "ASCII"),
        ("https://example.org\\@127.0.0.1/", "ASCII"),
        ("https://exam ple.org/", "ASCII"),
        ("https://example.org/\x00", "ASCII"),
    ],
)
def test_a_url_that_could_never_be_sent_to_is_refused_at_once(url: str, words: str) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        check_url(url, Settings())
    assert words in refusal.value.message
    assert refusal.value.errors[0].pointer == "/url"


def lookups(monkeypatch: pytest.MonkeyPatch, answers: list[list[str]]) -> list[str]:
    """Have names lead to these addresses, one list for each lookup; returns the names that were looked up."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def answer(host: str, port: int, *rest: Any, **more: Any) -> Any:
        if host[0].isdigit():
            return real(host, port, *rest, **more)
        asked.append(host)
        addresses = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


def test_one_forbidden_address_among_several_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups(monkeypatch, [["8.8.8.8", "10.0.0.1"]])
    with pytest.raises(AddressRefusedError, match=r"10\.0\.0\.1"):
        resolve("example.org", 443, [])


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "localhost", "0"])
def test_no_spelling_of_loopback_gets_through(host: str, receiver: Receiver) -> None:
    outcome = Sender(Settings(webhook_allow_http=True)).send(receiver.url(host), b"{}", {})
    assert outcome.error is not None
    assert "not on the public internet" in outcome.error or "cannot be resolved" in outcome.error
    assert receiver.messages == []


def test_the_connection_goes_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch, sender: Sender, receiver: Receiver
) -> None:
    """A name that leads elsewhere a moment later (DNS rebinding): it is looked up once only."""
    asked = lookups(monkeypatch, [["127.0.0.1"], ["127.0.0.2"]])
    outcome = sender.send(receiver.url("hooks.example.org"), b"{}", {})
    assert outcome.is_success
    assert asked == ["hooks.example.org"]
    assert receiver.messages[0].headers["host"] == f"hooks.example.org:{receiver.port}"


def test_a_name_that_leads_inside_is_never_connected_to(
    monkeypatch: pytest.MonkeyPatch, sender: Sender, receiver: Receiver
) -> None:
    lookups(monkeypatch, [["127.0.0.2"]])
    outcome = sender.send(receiver.url("hooks.example.org"), b"{}", {})
    assert outcome.error == "'hooks.example.org' is 127.0.0.2, which is not on the public internet."
    assert receiver.messages == []
