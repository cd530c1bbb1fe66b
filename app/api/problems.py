"""Every error leaves as application/problem+json (RFC 9457). Here, and only here, errors get status codes."""

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import DataError, OperationalError
from starlette.exceptions import HTTPException

from app.api.allowed_methods import allowed_methods
from app.artifacts.store import StoreUnavailableError
from app.errors import (
    AuthenticationError,
    ConflictError,
    FieldError,
    ForbiddenError,
    GoneError,
    InvalidInputError,
    NotFoundError,
    RateLimitedError,
    ServiceError,
    StorageFullError,
    TooLargeError,
)
from app.jobs.problems import problem
from app.jobs.specs import JOB_KINDS

log = structlog.get_logger(__name__)

JSON_HINT = "Send one JSON value as RFC 8259 has it, nested less than a hundred deep."
BODY_HINT = (
    "Send a JSON body nested less than a hundred deep, with numbers of less than 4300 digits; or, for an upload, a "
    "multipart/form-data body with one file and the text fields spec, name and metadata. See /docs."
)

STATUS_OF: dict[type[ServiceError], HTTPStatus] = {
    NotFoundError: HTTPStatus.NOT_FOUND,
    ConflictError: HTTPStatus.CONFLICT,
    GoneError: HTTPStatus.GONE,
    InvalidInputError: HTTPStatus.UNPROCESSABLE_ENTITY,
    AuthenticationError: HTTPStatus.UNAUTHORIZED,
    ForbiddenError: HTTPStatus.FORBIDDEN,
    RateLimitedError: HTTPStatus.TOO_MANY_REQUESTS,
    TooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    StorageFullError: HTTPStatus.INSUFFICIENT_STORAGE,
}


class ProblemDetail(BaseModel):
    """What one field got wrong."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """The body of every error answer."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
    retryable: bool
    errors: list[ProblemDetail]
    request_id: str


def documented(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of an endpoint that can answer with these errors."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status.value: {"description": status.phrase, "model": Problem, "content": content} for status in statuses}


def problem_response(
    request: Request,
    status: int,
    body: dict[str, Any],
    *,
    errors: Sequence[FieldError] = (),
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An answer with a problem object."""
    content = body | {
        "status": status,
        "errors": [{"pointer": error.pointer, "detail": error.detail} for error in errors],
        "request_id": request.scope.get("state", {}).get("request_id", ""),
    }
    return JSONResponse(content, status, headers, media_type="application/problem+json")


def install_problem_handlers(app: FastAPI) -> None:
    """Turn what an endpoint lets out into problems; app.api.middleware.RequestId takes failures."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(DataError, _on_bad_value)


def status_of(error: ServiceError) -> HTTPStatus:
    """The status code of the closest type in the table."""
    return next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)


def service_problem(request: Request, error: ServiceError) -> JSONResponse:
    """The answer to a refusal of the service."""
    status = status_of(error)
    body = problem(error.code, error.message, hint=error.hint, retryable=error.retryable, title=status.phrase)
    headers = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else {}
    if error.retryable:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    errors = error.errors if isinstance(error, InvalidInputError) else []
    return problem_response(request, status, body, errors=errors, headers=headers)


async def _on_service_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)  # noqa: S101 the handler is registered for this type
    return service_problem(request, error)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 the handler is registered for this type
    found = [dict(item) | {"loc": _in_body(item["loc"], item["type"])} for item in error.errors()]
    errors, hint = explain(found)
    detail = "; ".join(f"{item.pointer or '/'}: {item.detail}" for item in errors[:5])
    body = problem("invalid_input", detail, title="The request is not valid", hint=hint)
    return problem_response(request, HTTPStatus.UNPROCESSABLE_ENTITY, body, errors=errors)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 the handler is registered for this type
    phrase = HTTPStatus(error.status_code).phrase
    code = "too_large" if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else phrase.lower().replace(" ", "_")
    hint = BODY_HINT if error.status_code == HTTPStatus.BAD_REQUEST else ""
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = allowed_methods(request.app, request.url.path) or headers.get("Allow", "")
        hint = f"This path takes {headers['Allow']}."
    body = problem(code, str(error.detail), title=phrase, hint=hint)
    return problem_response(request, error.status_code, body, headers=headers)


def failure_problem(request: Request, error: Exception) -> JSONResponse:
    """The answer to a failure that nobody foresaw, or to a database that is away."""
    if isinstance(error, OperationalError):
        body = problem("unavailable", "The database does not answer now.", hint="Try again soon.", retryable=True)
        return problem_response(request, HTTPStatus.SERVICE_UNAVAILABLE, body, headers={"Retry-After": "2"})
    if isinstance(error, StoreUnavailableError):
        body = problem("unavailable", "The object store does not answer now.", hint="Try again soon.", retryable=True)
        return problem_response(request, HTTPStatus.SERVICE_UNAVAILABLE, body, headers={"Retry-After": "2"})
    body = problem("internal_error", "The server failed. It has logged why.", retryable=True)
    return problem_response(request, HTTPStatus.INTERNAL_SERVER_ERROR, body)


async def _on_bad_value(request: Request, error: Exception) -> JSONResponse:
    log.warning("request.value_refused_by_database", error=str(error))
    body = problem("invalid_input", "A value cannot be stored.", hint="Look for characters or numbers out of range.")
    return problem_response(request, HTTPStatus.UNPROCESSABLE_ENTITY, body)


def explain(found: Sequence[Mapping[str, Any]]) -> tuple[list[FieldError], str]:
    """What pydantic found, field by field, and what to do about it."""
    errors, hints = [], []
    for item in found:
        context = item.get("ctx", {})
        detail = item["msg"].removeprefix("Value error, ")
        if item["type"] == "json_invalid":
            detail = f"{detail}: {context['error']}" if context["error"] not in detail else detail
            hints.append(JSON_HINT)
        hints.append(context.get("hint", ""))
        errors.append(FieldError(_pointer(item["loc"]), detail))
    return errors, next(filter(None, hints), "See errors[], and /docs.")


def _in_body(location: Sequence[str | int], error_type: str) -> list[str | int]:
    """FastAPI's location as one in the body; parameters keep their place's name."""
    if error_type == "json_invalid":  # followed by a place in the text
        return []
    parts = list(location[1:]) if location and location[0] == "body" else list(location)
    if parts and parts[0] in JOB_KINDS:  # which member of the union was meant; the body has no such field
        del parts[0]
    return parts


def _pointer(location: Sequence[str | int]) -> str:
    """A JSON pointer (RFC 6901); what cannot be printed is shown as in a JSON string."""
    return "".join(f"/{_printable(str(part).replace('~', '~0').replace('/', '~1'))}" for part in location)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)
