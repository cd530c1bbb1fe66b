"""Requests as this process answered them. Each process has its own, and is scraped on its own."""

from http import HTTPMethod

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import Scope

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_METHODS = frozenset(HTTPMethod)


class HttpMetrics:
    """Counts answers and how long their first byte took, by route: never by path, which would be without bounds."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "route")
        self._requests = Counter(
            "neusemslice_http_requests", "Requests that were answered.", (*labels, "status"), registry=registry
        )
        self._seconds = Histogram(
            "neusemslice_http_request_seconds",
            "Time to the first byte of the answer; without requests that waited for a change.",
            labels,
            buckets=_SECONDS,
            registry=registry,
        )

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """A request has ended. Status 0: its client left before there was an answer."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", "none")
        self._requests.labels(method, route, str(status)).inc()
        if status and b"wait=" not in scope["query_string"]:
            self._seconds.labels(method, route).observe(seconds)
