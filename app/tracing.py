"""Traces from a request to the stages of its job, where a deployment collects them.

They need the extra `otel` and the variable OTEL_EXPORTER_OTLP_ENDPOINT; OpenTelemetry's other variables are its own.
Without these nothing is imported, and a client's `traceparent` still goes on to its job's logs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import structlog

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

log = structlog.get_logger(__name__)

Attributes = dict[str, str | int | float | bool]
_FLUSH_MS = 2000
_current: "ContextVar[Span | None]" = ContextVar("span", default=None)


def is_enabled() -> bool:
    """Whether spans go anywhere."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not any(os.environ.get(name) for name in names) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return _is_installed()


@contextmanager
def span(
    name: str, parent: str | None, *, kind: Literal["server", "consumer"], attributes: Attributes
) -> Iterator[str | None]:
    """Time the block, under the span that the W3C `traceparent` names; yields that of the new span."""
    if not is_enabled():
        yield parent
        return
    from opentelemetry.trace import SpanKind, Status, StatusCode

    tracer = _provider(os.getpid()).get_tracer("neusemslice")
    kinds = {"server": SpanKind.SERVER, "consumer": SpanKind.CONSUMER}
    started = tracer.start_span(name, _context(parent), kind=kinds[kind], attributes=attributes)
    token = _current.set(started)
    try:
        yield _traceparent(started)
    except BaseException as error:
        started.set_status(Status(StatusCode.ERROR, type(error).__name__))
        raise
    finally:
        _current.reset(token)
        started.end()


def annotate(attributes: Attributes, *, name: str | None = None, error: str | None = None) -> None:
    """Say more about the present span, if there is one."""
    present = _current.get()
    if present is None:
        return
    from opentelemetry.trace import Status, StatusCode

    present.set_attributes(attributes)
    if name is not None:
        present.update_name(name)
    if error is not None:
        present.set_status(Status(StatusCode.ERROR, error))


def record(name: str, began_ns: int, ended_ns: int) -> None:
    """Add what happened elsewhere, in nanoseconds since the epoch, to the present span, if there is one."""
    present = _current.get()
    if present is None:
        return
    tracer = _provider(os.getpid()).get_tracer("neusemslice")
    tracer.start_span(name, _context(_traceparent(present)), start_time=began_ns).end(ended_ns)


def flush() -> None:
    """Send what is still here: for processes that end without Python's exit handlers."""
    if is_enabled():
        _provider(os.getpid()).force_flush(_FLUSH_MS)


@cache
def _is_installed() -> bool:
    found = find_spec("opentelemetry") is not None and find_spec("opentelemetry.exporter") is not None
    if not found:
        log.warning("tracing.not_installed", hint="Install neusemslice[otel], or unset OTEL_EXPORTER_OTLP_ENDPOINT.")
    return found


@cache
def _provider(_: int) -> "TracerProvider":
    """Of this process: its sending thread does not survive a fork."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME", "neusemslice")
    resource = Resource.create({"service.name": name, "service.version": version("neusemslice")})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _context(traceparent: str | None) -> "Context":
    """A context in which the span that `traceparent` names is the present one."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {} if traceparent is None else {"traceparent": traceparent}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _traceparent(of: "Span") -> str:
    about = of.get_span_context()
    return f"00-{about.trace_id:032x}-{about.span_id:016x}-{about.trace_flags:02x}"
