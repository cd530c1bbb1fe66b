"""Requests without a valid key: counted, and logged a line at a time however many there are."""

import asyncio
import contextvars

import structlog

log = structlog.get_logger(__name__)

LOG_EVERY_S = 10.0


class FailedAuthentications:
    """Those that this process has refused. Belongs to one event loop."""

    def __init__(self) -> None:
        self.total = 0
        self._logged = 0
        self._last_address: str | None = None
        self._is_quiet = False

    def note(self, address: str | None) -> None:
        """Count one; log it now, or with others within ten seconds."""
        self.total += 1
        self._last_address = address
        if not self._is_quiet:
            self._log()

    def _log(self) -> None:
        self._is_quiet = self.total > self._logged
        if self._is_quiet:
            log.warning(
                "authentication.failed",
                failures=self.total - self._logged,
                total=self.total,
                last_address=self._last_address,
            )
            self._logged = self.total
            later = contextvars.Context()  # of no request: the next line is about many
            asyncio.get_running_loop().call_later(LOG_EVERY_S, self._log, context=later)
