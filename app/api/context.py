"""What every endpoint gets: the services, who is asking, and one way to answer a POST exactly once."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from fastapi import Depends, Header, Query, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import StringConstraints
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.api.access import actor_of
from app.api.services import Services
from app.artifacts.catalog import Catalog
from app.artifacts.uploads import Uploads
from app.jobs.idempotency import recall, remember
from app.jobs.origin import NOBODY, Origin
from app.jobs.queue import relay_outbox
from app.jobs.service import JobService
from app.projects.audit import SERVICE, Actor, act_as
from app.projects.keys import Principal
from app.settings import Settings
from app.webhooks.service import WebhookService

log = structlog.get_logger(__name__)
bearer = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="An API key: `nss_…`")

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Repeat a POST safely: the same key and request take effect once.",
    ),
]


@dataclass(frozen=True)
class Answer:
    """A successful answer to a POST, in a form that can be kept and given again."""

    status: int
    body: Any
    location: str | None = None
    kept_body: Any = None
    """What a repetition is shown instead; without secrets, since it is stored."""

    def to_response(self, *, replayed: bool = False) -> JSONResponse:
        """The HTTP form."""
        headers = {"Location": self.location} if self.location else {}
        if replayed:
            headers["Idempotent-Replayed"] = "true"
        return JSONResponse(self.body, self.status, headers)


@dataclass(frozen=True)
class RequestContext:
    """One request's view of the service, limited to the caller's project."""

    services: Services
    principal: Principal
    target: str
    idempotency_key: str | None
    actor: Actor = SERVICE
    origin: Origin = NOBODY

    @property
    def settings(self) -> Settings:
        """The service's settings."""
        return self.services.settings

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits at the end of the block, with what the caller changes under the caller's name."""
        with self.services.database.transaction() as session:
            act_as(session, self.actor)
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that changes nothing."""
        with self.services.database.autocommit() as session:
            yield session

    def catalog(self, session: Session) -> Catalog:
        """The project's models, datasets and artifacts."""
        return Catalog(session, self.principal.project_id)

    def uploads(self, session: Session) -> Uploads:
        """The project's uploads in parts."""
        return Uploads(session, self.principal.project_id, ttl_s=self.settings.upload_ttl_s)

    def jobs(self, session: Session) -> JobService:
        """The project's jobs."""
        limit, origin = self.settings.max_attempts, self.origin
        return JobService(session, self.principal.project_id, max_attempts=limit, origin=origin)

    def webhooks(self, session: Session) -> WebhookService:
        """The project's webhooks."""
        return WebhookService(session, self.principal.project_id, self.settings)

    def once(self, request: Any, action: Callable[[Session], Answer]) -> JSONResponse:
        """Run `action` in a transaction and announce the jobs it queued, or repeat what it answered before.

        `request` is everything the caller asked for, as JSON values; it must be the same for a repetition to count.
        """
        project_id, key = self.principal.project_id, self.idempotency_key
        fingerprint = hashlib.sha256(json.dumps([self.target, request], sort_keys=True).encode()).hexdigest()
        with self.transaction() as session:
            if key is not None:
                earlier = recall(session, project_id, key, fingerprint)
                if earlier is not None:
                    return Answer(**earlier).to_response(replayed=True)
            answer = action(session)
            if key is not None:
                body = answer.body if answer.kept_body is None else answer.kept_body
                kept = {"status": answer.status, "body": body, "location": answer.location}
                remember(session, project_id, key, kept)
        try:
            relay_outbox(self.services.database, self.services.queue)
        except DBAPIError as error:  # the effect is committed; the relay announces it later
            log.warning("request.not_announced", error=str(error))
        return answer.to_response()


async def get_services(request: Request) -> Services:
    """The application's services."""
    services: Services = request.app.state.services
    return services


async def get_context(
    request: Request, _: Annotated[object, Depends(bearer)], idempotency_key: IdempotencyKey = None
) -> RequestContext:
    """The context of this request. app.api.middleware.Authenticate has found out who asks, before the body was read."""
    services: Services = request.app.state.services
    principal: Principal = request.state.principal
    target, actor = f"{request.method} {request.url.path}", actor_of(request, principal)
    origin = Origin(request.state.request_id, request.state.traceparent)
    return RequestContext(services, principal, target, idempotency_key, actor, origin)


Context = Annotated[RequestContext, Depends(get_context)]
ServicesDep = Annotated[Services, Depends(get_services)]
Limit = Annotated[int, Query(ge=1, le=200, description="At most this many.")]
Cursor = Annotated[
    str | None,
    StringConstraints(pattern=r"^[a-z]+_[0-9a-z]{26}$"),
    Query(description="`next_cursor` of the page before."),
]
WaitS = Annotated[float, Query(ge=0, le=600, description="Wait up to this many seconds for a change.")]
