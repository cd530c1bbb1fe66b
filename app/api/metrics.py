"""Where Prometheus finds the metrics: a port of its own, which no proxy in front of the API shows around."""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, start_http_server

from app.api.job_metrics import JobMetrics
from app.db import Database
from app.settings import Settings

log = structlog.get_logger(__name__)


def make_registry(settings: Settings, database: Database) -> CollectorRegistry:
    """What this process shows: itself, and the service as the tables have it."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(JobMetrics(settings, database))
    return registry


@contextmanager
def serving_metrics(settings: Settings, registry: CollectorRegistry) -> Iterator[int | None]:
    """`GET /metrics` without a key, from a thread of its own: the port, or None if the settings name none."""
    if settings.metrics_port is None:
        yield None
        return
    server, thread = start_http_server(settings.metrics_port, settings.metrics_host, registry)
    log.info("metrics.listening", host=settings.metrics_host, port=server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
