"""`/v1/jobs/{id}/logs`: what a job's process printed."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response

from app.api.context import Context
from app.api.problems import documented
from app.jobs.logs import log_of
from app.jobs.specs import JobId

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_NEVER_SHOWN = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}


@router.get(
    "/{job_id}/logs",
    operation_id="get_job_log",
    response_class=Response,
    responses={
        HTTPStatus.OK: {
            "content": {"text/plain": {"schema": {"type": "string"}}},
            "headers": {
                "X-Attempt": {"description": "Which attempt it is.", "schema": {"type": "integer"}},
                "X-Log-Bytes": {"description": "Size of all that is kept.", "schema": {"type": "integer"}},
            },
        }
    }
    | documented(HTTPStatus.NOT_FOUND),
)
def get_job_log(
    job_id: JobId,
    context: Context,
    attempt: Annotated[int | None, Query(ge=1, lt=2**31, description="Default: the last that has ended.")] = None,
    tail: Annotated[int | None, Query(ge=1, le=2**31, description="Only so many of the last bytes.")] = None,
) -> Response:
    """What the process of an attempt printed, whatever its end; of much, the beginning and the end (1 MiB)."""
    with context.reading() as session:
        row = log_of(session, context.jobs(session).get(job_id).id, attempt)
    content = row.content if tail is None else row.content[-tail:]
    headers = {"X-Attempt": str(row.attempt), "X-Log-Bytes": str(len(row.content)), **_NEVER_SHOWN}
    return Response(content, headers=headers, media_type="text/plain; charset=utf-8")
