"""What the service refuses, one tree; it knows nothing of HTTP (app.api.problems maps it to status codes).

ServiceError
├── NotFoundError          no such object in this project
├── ConflictError          the object's state does not allow this
│   ├── NotReadyError      it will, once its inspection has finished
│   ├── KeyInFlightError   it will, once the first request with this Idempotency-Key has been answered
│   └── QuotaError         the project has as much of it as it may have
├── GoneError              it was there, and its time is over
├── InvalidInputError      well-formed, but it makes no sense; points at the fields
│   ├── KeyReusedError     an Idempotency-Key came back with another request
│   └── DigestMismatchError  the bytes are not those that their SHA-256 promised
├── AuthenticationError    no API key, or not a valid one
├── ForbiddenError         a valid API key without the needed scope
├── RateLimitedError       more requests than the project may send
├── TooLargeError          more bytes than the limit
└── StorageFullError       no room for more bytes now
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field; `pointer` is a JSON pointer into the request."""

    pointer: str
    detail: str


class ServiceError(Exception):
    """Base of the tree. `hint` says what to do; `retryable` whether the same request can succeed later."""

    code = "service_error"
    retryable = False
    retry_after_s = 1.0
    """When it can, at the earliest."""

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.code


class NotFoundError(ServiceError):
    """No such object in this project."""

    code = "not_found"


class ConflictError(ServiceError):
    """The object's state does not allow this."""

    code = "conflict"


class NotReadyError(ConflictError):
    """The object is still being inspected."""

    code = "not_ready"
    retryable = True


class KeyInFlightError(ConflictError):
    """The first request with this Idempotency-Key is still under way."""

    code = "idempotency_key_in_flight"
    retryable = True


class QuotaError(ConflictError):
    """The project has as much of something as it may have. `retry_after_s` is given if waiting can help."""

    def __init__(self, message: str, *, hint: str, code: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, hint=hint, code=code)
        self.retryable = retry_after_s is not None
        self.retry_after_s = retry_after_s or self.retry_after_s


class GoneError(ServiceError):
    """It was there, and its time is over."""

    code = "gone"


class InvalidInputError(ServiceError):
    """The request is well-formed, but it makes no sense."""

    code = "invalid_input"

    def __init__(self, message: str, *, errors: list[FieldError] | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.errors = errors or []


class KeyReusedError(InvalidInputError):
    """An Idempotency-Key came back with another request."""

    code = "idempotency_key_reused"


class DigestMismatchError(InvalidInputError):
    """The bytes are not those that their SHA-256 promised."""

    code = "digest_mismatch"


class AuthenticationError(ServiceError):
    """No API key, or not a valid one."""

    code = "unauthenticated"


class ForbiddenError(ServiceError):
    """The API key lacks a scope."""

    code = "forbidden"


class RateLimitedError(ServiceError):
    """More requests than the project may send."""

    code = "rate_limited"
    retryable = True

    def __init__(self, message: str, *, hint: str, retry_after_s: float) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class TooLargeError(ServiceError):
    """More bytes than the limit."""

    code = "too_large"


class StorageFullError(ServiceError):
    """No room for more bytes now."""

    code = "storage_full"
    retryable = True
