"""One message to one receiver: checked addresses only, no redirects, bounded in time and bytes."""

import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore

from app.settings import Settings
from app.webhooks.addresses import AddressRefusedError, Network, resolve

SNIPPET_BYTES = 1024
"""So much of an answer is kept, to show what a receiver said; no more than that is read."""
_OWN_HEADERS = (("Content-Type", "application/json"), ("User-Agent", "neusemslice-webhooks/1"))


@dataclass(frozen=True)
class Outcome:
    """What became of one try: the receiver's status code and the beginning of its answer, or why there is none."""

    duration_ms: int
    status_code: int | None = None
    response: str | None = None
    error: str | None = None

    @property
    def is_success(self) -> bool:
        """The receiver has taken the message."""
        return self.status_code is not None and 200 <= self.status_code < 300

    @property
    def is_gone(self) -> bool:
        """The receiver asks for no more messages, ever."""
        return self.status_code == 410


class Sender:
    """Sends to addresses that are allowed. May be used by several threads."""

    def __init__(self, settings: Settings, *, tls: ssl.SSLContext | None = None) -> None:
        self._settings = settings
        self._tls = tls or ssl.create_default_context()

    def send(self, url: str, body: bytes, headers: dict[str, str]) -> Outcome:
        """POST `body`; whatever goes wrong is in the outcome."""
        started = time.monotonic()
        status_code, response, error = None, None, None
        try:
            status_code, response = self._exchange(url, body, headers)
        except AddressRefusedError as refusal:
            error = str(refusal)
        except httpcore.TimeoutException:
            error = f"No answer within {self._settings.webhook_timeout_s:g} s."
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol, ValueError) as failure:
            error = f"{type(failure).__name__}: {failure}"[:500]
        return Outcome(round(1000 * (time.monotonic() - started)), status_code, response, error)

    def _exchange(self, url: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        timeout_s = self._settings.webhook_timeout_s
        backend = _CheckedBackend(self._settings.webhook_allowed_networks, time.monotonic() + timeout_s)
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)
        with (
            httpcore.ConnectionPool(ssl_context=self._tls, network_backend=backend, retries=0) as pool,
            pool.stream(
                "POST",
                url,
                headers=[*headers.items(), *_OWN_HEADERS],
                content=body,
                extensions={"timeout": timeouts},
            ) as answer,
        ):
            received = bytearray()
            for chunk in answer.iter_stream():
                received += chunk
                if len(received) >= SNIPPET_BYTES:
                    break
            snippet = (
                bytes(received[:SNIPPET_BYTES]).decode(errors="replace").replace("\x00", "\N{REPLACEMENT CHARACTER}")
            )
            return answer.status, snippet


class _CheckedBackend(httpcore.NetworkBackend):
    """Looks a name up once, checks every address, and connects to what was checked: what the name leads to a moment
    later (DNS rebinding) does not matter. TLS and the Host header keep the name.
    """

    def __init__(self, allowed: Sequence[Network], deadline: float) -> None:
        self._allowed = allowed
        self._deadline = deadline
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """See httpcore.NetworkBackend."""
        addresses = resolve(host.strip("[]"), port, self._allowed)
        for place, address in enumerate(addresses):
            try:
                stream = self._backend.connect_tcp(
                    address,
                    port,
                    _within(self._deadline, timeout, httpcore.ConnectTimeout),
                    local_address,
                    socket_options,
                )
            except httpcore.ConnectError:
                if place == len(addresses) - 1:
                    raise
            else:
                return _BoundedStream(stream, self._deadline)
        raise httpcore.ConnectError(f"{host!r} has no address.")


class _BoundedStream(httpcore.NetworkStream):
    """A connection with an end: a receiver that dribbles must not hold a sender up."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See httpcore.NetworkStream."""
        return self._stream.read(max_bytes, _within(self._deadline, timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """See httpcore.NetworkStream."""
        self._stream.write(buffer, _within(self._deadline, timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        """See httpcore.NetworkStream."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """See httpcore.NetworkStream."""
        remaining = _within(self._deadline, timeout, httpcore.ConnectTimeout)
        return _BoundedStream(self._stream.start_tls(ssl_context, server_hostname, remaining), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """See httpcore.NetworkStream."""
        return self._stream.get_extra_info(info)


def _within(deadline: float, timeout: float | None, failure: type[httpcore.TimeoutException]) -> float:
    """What is left until the deadline, and at most `timeout`."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise failure
    return remaining if timeout is None else min(timeout, remaining)
