"""How `neusemslice serve` stops: word goes round first, then requests end, then the process."""

import signal
import time
from collections.abc import Callable
from types import FrameType

import structlog
import uvicorn

log = structlog.get_logger(__name__)


class GracefulServer(uvicorn.Server):
    """On SIGTERM or SIGINT calls `begin`, serves on for `notice_s`, and ends; on a second one it ends at once.

    While it serves on, `/readyz` says that it drains, and each answer closes its connection.
    """

    def __init__(
        self, config: uvicorn.Config, *, begin: Callable[[], None], hurry: Callable[[], None], notice_s: float
    ) -> None:
        super().__init__(config)
        self._begin = begin
        self._hurry = hurry
        self._signals = 0
        self._leave_at: float | None = None
        self._notice_s = notice_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 uvicorn's signature
        """Runs in the signal handler: what takes longer is left to the next tick."""
        self._signals += 1
        if self._signals > 1:
            self.should_exit = self.force_exit = True
            self._hurry()

    async def on_tick(self, counter: int) -> bool:
        """Runs ten times a second."""
        if self._signals and self._leave_at is None:
            log.info("serve.draining", notice_s=self._notice_s)
            self._begin()
            self._leave_at = time.monotonic() + self._notice_s
            self.config.encoded_headers.append((b"connection", b"close"))
            self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        if self._leave_at is not None and time.monotonic() >= self._leave_at:
            self.should_exit = True
        return await super().on_tick(counter)


def ignore_stop_signals() -> None:
    """Outside of the server's run, which listens to them, they do nothing: what has begun to stop goes on stopping."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
