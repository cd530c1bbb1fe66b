"""Who is asking, and may they."""

from urllib.parse import urlsplit

from starlette.requests import Request

from app.api.services import Services
from app.errors import AuthenticationError, ForbiddenError
from app.projects.keys import DEFAULT_PROJECT, SCOPES, Principal, authenticate, ensure_project

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def find_principal(request: Request) -> Principal:
    """Who holds the request's API key, with the scope that its method needs.

    Raises:
        AuthenticationError: there is no key, or it is not valid.
        ForbiddenError: the key lacks the scope, or a keyless server is asked from elsewhere.
    """
    services: Services = request.app.state.services
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    with services.database.transaction() as session:
        if scheme.lower() == "bearer" and key:
            principal = authenticate(session, key.strip())
        elif services.settings.keyless:
            _require_loopback(request)
            principal = Principal(ensure_project(session, DEFAULT_PROJECT), frozenset(SCOPES))
        else:
            raise AuthenticationError(
                "This request has no API key.", hint="Send the header `Authorization: Bearer nss_…`."
            )
    needed = "read" if request.method in ("GET", "HEAD") else "write"
    if needed not in principal.scopes:
        raise ForbiddenError(f"This API key lacks the scope {needed!r}.", hint="Use a key that has it.")
    return principal


def _require_loopback(request: Request) -> None:
    """Without keys, a web page of somebody else must not reach the server through its user's browser."""
    origin = request.headers.get("origin")
    hosts = [request.url.hostname, *([urlsplit(origin).hostname] if origin is not None else [])]
    if any(host not in LOOPBACK for host in hosts):
        raise ForbiddenError("Without API keys only this machine is served.", hint="Use http://127.0.0.1, or keys.")
