"""What the service answers: its body, or its explanation of a refusal."""

from http import HTTPStatus
from typing import Any

import urllib3

Json = dict[str, Any]

_PASSING = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
_TEXT_MAX = 300


class ServiceAnswerError(Exception):
    """The service refused a request; `problem` is its explanation."""

    def __init__(self, problem: Json) -> None:
        super().__init__(f"{problem.get('status')} {problem.get('code')}: {problem.get('detail')}")
        self.problem = problem

    @property
    def is_passing(self) -> bool:
        """Whether the same request may be taken later."""
        problem = self.problem
        return (
            bool(problem.get("retryable"))
            or problem.get("code") in ("upload_busy", "request_timeout")
            or problem.get("status") in _PASSING
        )


def check(response: urllib3.BaseHTTPResponse) -> None:
    """Go on if the request was taken.

    Raises:
        ServiceAnswerError: it was not. What stands before the service, such as a proxy, explains itself in words.
    """
    if response.status < HTTPStatus.BAD_REQUEST:
        return
    if "json" in response.headers.get("content-type", ""):
        raise ServiceAnswerError(response.json())
    text = response.data.decode(errors="replace")[:_TEXT_MAX]
    raise ServiceAnswerError({"status": response.status, "code": "unexplained", "detail": text})


def body_of(response: urllib3.BaseHTTPResponse) -> Json:
    """The answer to a request that was taken.

    Raises:
        ServiceAnswerError: it was not.
    """
    check(response)
    body: Json = response.json()
    return body
