"""A span for every request, which the spans of the jobs that it submits hang on."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import tracing

_ERROR = 500


class TraceRequests:
    """Stands inside app.api.middleware.RequestId, which has read the client's place in a trace."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        state, method, status = scope["state"], scope["method"], 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        about: tracing.Attributes = {"http.request.method": method, "request_id": state["request_id"]}
        with tracing.span(method, state["traceparent"], kind="server", attributes=about) as state["traceparent"]:
            await self._app(scope, receive, watch)
            route = getattr(scope.get("route"), "path", "none")
            error = f"status {status}" if status >= _ERROR else None
            answered: tracing.Attributes = {"http.route": route, "http.response.status_code": status}
            tracing.annotate(answered, name=f"{method} {route}", error=error)
