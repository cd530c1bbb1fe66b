"""What happens to every request before an endpoint sees it."""

import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import problem_response
from app.ids import new_id
from app.jobs.problems import problem

log = structlog.get_logger(__name__)


class RequestId:
    """Gives each request an id, shows it in the answer, and logs the request under it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, started = new_id("req"), time.monotonic()
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
                seconds = round(time.monotonic() - started, 4)
                path, method = scope["path"], scope["method"]
                log.info("request", method=method, path=path, status=message["status"], seconds=seconds)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)


class DeclaredSize:
    """Refuses a body whose declared length is over the limit with a problem, before any of it is read.

    Bodies without a declared length are counted while they are read (FastAPI's max_body_size).
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_json_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_json_bytes = max_json_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            limit = self._max_json_bytes if scope["path"].startswith("/v1/jobs") else self._max_bytes
            declared = Headers(scope=scope).get("content-length", "")
            if declared.isdecimal() and int(declared) > limit:
                detail = f"The request has {declared} bytes; at most {limit} are taken here."
                response = problem_response(Request(scope), 413, problem("too_large", detail))
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
