"""The HTTP application, put together."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import artifacts, datasets, health, jobs, models
from app.api.changes import ChangeListener
from app.api.context import Services
from app.api.problems import install_problem_handlers
from app.artifacts.store import LocalBlobStore
from app.db import Database
from app.ids import new_id
from app.queues import make_queue
from app.settings import Settings

log = structlog.get_logger(__name__)

DESCRIPTION = (
    "Upload a trained network and a dataset, queue a job, and download critical-neuron masks or a smaller checkpoint. "
    "Errors are application/problem+json. Every POST takes an Idempotency-Key."
)


def create_app(settings: Settings, database: Database) -> FastAPI:
    """The API on a migrated database."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        listener = ChangeListener(database)
        store = LocalBlobStore(settings.blob_dir)
        app.state.services = Services(settings, database, store, make_queue(settings, database), listener)
        listening = asyncio.create_task(listener.run())
        yield
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening

    app = FastAPI(
        title="neusemslice",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        max_body_size=settings.max_body_bytes,
    )
    install_problem_handlers(app)
    app.include_router(models.router)
    app.include_router(datasets.router)
    app.include_router(jobs.router, max_body_size=settings.max_json_bytes)
    app.include_router(artifacts.router)
    app.include_router(health.router)
    app.add_middleware(RequestId)
    return app


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
