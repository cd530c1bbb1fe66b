"""What happens to every request before an endpoint sees it."""

import re
from http import HTTPStatus

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import identify
from app.api.problems import failure_problem, problem_response, service_problem
from app.api.request_rates import too_many
from app.api.services import Services
from app.errors import ServiceError
from app.ids import new_id
from app.jobs.problems import problem

JSON_ALONE = ("/v1/jobs", "/v1/webhooks")
"""Where no body is larger than JSON may be."""

log = structlog.get_logger(__name__)


_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class RequestId:
    """Gives each request an id, or takes the client's; shows it in the answer, and puts it into every line of the log.

    A client's place in a trace is kept beside it, for the jobs that the request submits.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked, traceparent = headers.get("x-request-id", ""), headers.get("traceparent", "")
        request_id = asked if _SANE_ID.fullmatch(asked) else new_id("req")
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["traceparent"] = traceparent if _TRACEPARENT.fullmatch(traceparent) else None

        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                log.exception("request.failed", method=scope["method"], path=scope["path"])
                if has_started:
                    raise
                await failure_problem(Request(scope), error)(scope, receive, send_with_id)


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
            limit = self._max_json_bytes if scope["path"].startswith(JSON_ALONE) else self._max_bytes
            declared = Headers(scope=scope).get("content-length", "")
            if declared.isdecimal() and int(declared) > limit:
                detail = f"The request has {declared} bytes; at most {limit} are taken here."
                too_large = problem("too_large", detail)
                response = problem_response(Request(scope), HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Authenticate:
    """Finds out who is asking, and whether they may ask now, before any of the body is read: strangers cannot make the
    server take anything in.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        services: Services = request.app.state.services
        try:
            principal = await identify(request)
        except ServiceError as error:
            await service_problem(request, error)(scope, receive, send)
            return
        scope["state"]["principal"] = principal
        allowance = await services.rates.admit(services.database, principal)
        if allowance is None:
            await self._app(scope, receive, send)
            return

        async def send_with_limit(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(allowance.headers())
            await send(message)

        if allowance.admitted:
            await self._app(scope, receive, send_with_limit)
        else:
            await service_problem(request, too_many(allowance))(scope, receive, send_with_limit)
