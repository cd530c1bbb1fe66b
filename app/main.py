"""The HTTP application, put together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

from anyio import to_thread
from fastapi import FastAPI

from app import tracing
from app.api import (
    artifacts,
    audit,
    datasets,
    health,
    job_logs,
    jobs,
    keys,
    models,
    project,
    upload_parts,
    uploads_in_parts,
    webhooks,
)
from app.api.access_log import AccessLog
from app.api.changes import ChangeListener
from app.api.completions import Completions
from app.api.file_threads import FileThreads
from app.api.http_metrics import HttpMetrics
from app.api.metrics import make_registry, serving_metrics
from app.api.middleware import Authenticate, DeclaredSize, RequestId
from app.api.problems import documented, install_problem_handlers
from app.api.readiness import ReadinessCheck
from app.api.services import Services
from app.api.trace_requests import TraceRequests
from app.artifacts.staging import Staging
from app.artifacts.stores import make_store
from app.db import CONNECTIONS, Database
from app.jobs.outlook import Outlook
from app.queues import make_queue
from app.settings import Settings

COMMON_ANSWERS = documented(
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
DESCRIPTION = (
    "Upload a trained network and a dataset, queue a job, and download critical-neuron masks or a smaller checkpoint. "
    "Errors are application/problem+json. Every POST takes an Idempotency-Key."
)


def create_app(settings: Settings, database: Database) -> FastAPI:
    """The API on a migrated database."""
    registry = make_registry(settings, database)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = CONNECTIONS
        listener = ChangeListener(database)
        store, staging = make_store(settings, database), Staging(settings.upload_dir)
        completions = Completions(database, store, staging)
        queue, outlook = make_queue(settings, database), Outlook(database)
        app.state.services = Services(
            settings, database, store, queue, listener, outlook, staging, completions, FileThreads()
        )
        app.state.readiness = ReadinessCheck(app.state.services)
        listening = asyncio.create_task(listener.run())
        with serving_metrics(settings, registry) as app.state.metrics_port:
            yield
        completions.close()
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening

    app = FastAPI(
        title="neusemslice",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
    )
    install_problem_handlers(app)
    for router, max_body_bytes in (
        (models.json_router, settings.max_json_bytes),  # before those that take forms at the same paths
        (datasets.json_router, settings.max_json_bytes),
        (models.router, settings.max_body_bytes),
        (datasets.router, settings.max_body_bytes),
        (jobs.router, settings.max_json_bytes),
        (job_logs.router, settings.max_json_bytes),
        (artifacts.router, settings.max_json_bytes),
        (uploads_in_parts.router, settings.max_json_bytes),
        (upload_parts.router, settings.max_body_bytes),
        (keys.router, settings.max_json_bytes),
        (project.router, settings.max_json_bytes),
        (audit.router, settings.max_json_bytes),
        (webhooks.router, settings.max_json_bytes),
    ):
        app.include_router(router, max_body_size=max_body_bytes, responses=COMMON_ANSWERS)
    app.include_router(health.router)
    app.add_middleware(DeclaredSize, max_bytes=settings.max_body_bytes, max_json_bytes=settings.max_json_bytes)
    app.add_middleware(Authenticate)
    if tracing.is_enabled():
        app.add_middleware(TraceRequests)
    app.add_middleware(RequestId)
    app.add_middleware(AccessLog, metrics=HttpMetrics(registry))
    return app
