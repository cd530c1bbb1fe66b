"""Which addresses messages may go to: never into the network that the service itself stands in.

A client chooses the receiver, so without this it could have the service talk to its neighbours: databases, cloud
metadata, other machines' loopback services.
"""

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from app.errors import FieldError, InvalidInputError
from app.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_EMBEDDING = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
"""IPv6 ranges whose last 32 bits are an IPv4 address: what NAT64 translates, and the old compatible form."""
_PLATFORM = (
    ipaddress.IPv4Network("168.63.129.16/32"),
    ipaddress.IPv4Network("192.0.0.0/24"),
    ipaddress.IPv6Network("64:ff9b:1::/48"),
    ipaddress.IPv6Network("fec0::/10"),
)
"""Not global in effect, whatever Python's tables say: Azure's host, what Oracle's metadata is among, local NAT64, and
the old site-local range.
"""


class AddressRefusedError(Exception):
    """The receiver's name does not lead to an address that messages may go to."""


def check_url(url: str, settings: Settings) -> None:
    """Refuse at once what could never be sent to. Names are looked up when a message is sent, not here.

    Raises:
        InvalidInputError: points at `/url`.
    """
    schemes = ("https", "http") if settings.webhook_allow_http else ("https",)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refused(f"{error}") from error
    if parts.scheme not in schemes:
        raise _refused(f"it must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise _refused("it must be ASCII without blanks; write other letters percent-encoded or as xn--…")
    if not host or port == 0:
        raise _refused("it must name a host")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise _refused("it must have no user, password or fragment")
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        return
    if not is_allowed(literal, settings.webhook_allowed_networks):
        raise _refused(f"{literal} is not on the public internet")


def resolve(host: str, port: int, allowed: Sequence[Network]) -> list[str]:
    """The addresses of `host`, looked up once; connect to these and look nothing up again.

    Raises:
        AddressRefusedError: there is none, or one of them is not to be talked to.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise AddressRefusedError(f"The name {host!r} cannot be resolved.") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if not is_allowed(ipaddress.ip_address(address), allowed):
            raise AddressRefusedError(f"{host!r} is {address}, which is not on the public internet.")
    return addresses


def is_allowed(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether messages may go there: the public internet, and what the operator listed."""
    if any(address in network for network in allowed if network.version == address.version):
        return True
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if inner is None and any(address in network for network in _EMBEDDING):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner:
            return is_allowed(inner, allowed)
    if any(address in network for network in _PLATFORM if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _refused(detail: str) -> InvalidInputError:
    hint = "Give the address of a receiver on the public internet, or ask the operator to allow its network."
    return InvalidInputError(f"The url cannot be a webhook: {detail}.", errors=[FieldError("/url", detail)], hint=hint)
