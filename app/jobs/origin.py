"""What a job knows of the request that submitted it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """The request's id in the logs, and its place in a trace (a W3C `traceparent`)."""

    request_id: str | None = None
    traceparent: str | None = None


NOBODY = Origin()
"""Of jobs that no request asked for."""
