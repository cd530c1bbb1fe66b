"""Who is asking, and may they."""

from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app.api.services import Services
from app.errors import AuthenticationError, ForbiddenError
from app.projects.audit import Actor
from app.projects.directory import ensure_project
from app.projects.keys import DEFAULT_PROJECT, SCOPES, Principal, Scope, authenticate
from app.projects.orm import ProjectRow

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
ADMIN_PATHS = ("/v1/keys", "/v1/audit")
KEYLESS = "keyless"


async def identify(request: Request) -> Principal:
    """Who holds the request's API key, with the scope that the request needs.

    Raises:
        AuthenticationError: there is no key, or it is not valid.
        ForbiddenError: the key lacks the scope, or a keyless server is asked from elsewhere.
    """
    services: Services = request.app.state.services
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    shown = key.strip() if scheme.lower() == "bearer" else ""
    try:
        principal = services.keys.find(shown) if shown else None
        if principal is None:
            principal = await run_in_threadpool(_find_principal, request, services, shown)
            if shown:
                services.keys.keep(shown, principal, services.settings.key_cache_s)
    except AuthenticationError:
        services.failed_authentications.note(address_of(request))
        raise
    needed = scope_needed(request.method, request.scope["path"])
    if needed not in principal.scopes:
        raise ForbiddenError(f"This API key lacks the scope {needed!r}.", hint="Use a key that has it.")
    return principal


def scope_needed(method: str, path: str) -> Scope:
    """What a key must have for a request."""
    if path.startswith(ADMIN_PATHS):
        return "admin"
    return "read" if method in ("GET", "HEAD") else "write"


def actor_of(request: Request, principal: Principal) -> Actor:
    """Who the audit log names for what this request changes."""
    name = KEYLESS if principal.key_id is None else f"key:{principal.key_id}"
    return Actor(name, request.scope["state"]["request_id"], address_of(request))


def address_of(request: Request) -> str | None:
    """The client's address, as far as the server knows it."""
    return request.client.host if request.client is not None else None


def _find_principal(request: Request, services: Services, key: str) -> Principal:
    with services.database.transaction() as session:
        if key:
            return authenticate(session, key)
        if services.settings.keyless:
            _require_loopback(request)
            project = session.get_one(ProjectRow, ensure_project(session, DEFAULT_PROJECT))
            return Principal(project.id, frozenset(SCOPES), requests_per_minute=project.requests_per_minute)
    raise AuthenticationError("This request has no API key.", hint="Send the header `Authorization: Bearer nss_…`.")


def _require_loopback(request: Request) -> None:
    """Without keys, a web page of somebody else must not reach the server through its user's browser."""
    origin = request.headers.get("origin")
    hosts = [request.url.hostname, *([urlsplit(origin).hostname] if origin is not None else [])]
    if any(host not in LOOPBACK for host in hosts):
        raise ForbiddenError("Without API keys only this machine is served.", hint="Use http://127.0.0.1, or keys.")
