"""One line in the log for every request, when it has ended, and the same in the metrics."""

import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http_metrics import HttpMetrics

log = structlog.get_logger(__name__)

QUIET = frozenset({"/livez", "/readyz"})
"""Asked every few seconds by machines: logged only if the answer is an error."""
_ERROR = 500


class AccessLog:
    """Stands around everything else, so that it sees each answer as it leaves."""

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, answered_s = time.monotonic(), 0, 0.0
        state = scope.setdefault("state", {})

        async def watch(message: Message) -> None:
            nonlocal status, answered_s
            if message["type"] == "http.response.start":
                status, answered_s = int(message["status"]), time.monotonic() - started
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            self._metrics.count(scope, status, answered_s)
            if scope["path"] not in QUIET or status >= _ERROR:
                principal = state.get("principal")
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    seconds=round(answered_s, 4),
                    total_seconds=round(time.monotonic() - started, 4),
                    request_id=state.get("request_id"),
                    project_id=principal and principal.project_id,
                    key_id=principal and principal.key_id,
                )
