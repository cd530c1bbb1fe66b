"""`/v1/jobs`: submit, list, watch, cancel, retry, clone."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from app.api.cloning import parse_changed
from app.api.conditional import tagged
from app.api.context import Answer, Context, Cursor, Limit, WaitS
from app.api.dry_run import DryRun
from app.api.event_stream import EVENTS_PER_READ, read_events, read_job, stream_events
from app.api.metadata_query import METADATA_PARAMETER, MetadataQuery
from app.api.problems import documented
from app.api.schemas.artifacts import ArtifactRead
from app.api.schemas.events import EventPage
from app.api.schemas.jobs import JobRead
from app.api.schemas.pages import Page, page
from app.jobs.estimates import estimate
from app.jobs.filters import JobFilter
from app.jobs.specs import JobId, JobKind, JobSpec, ModelId, Moment
from app.jobs.status import JobStatus

Seq = Annotated[int, Field(ge=0, lt=2**31)]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.post(
    "",
    operation_id="create_job",
    status_code=HTTPStatus.ACCEPTED,
    response_model=JobRead,
    responses={HTTPStatus.OK: {"model": DryRun, "description": "With `dry_run`: it would be queued."}}
    | documented(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
)
def create_job(
    spec: Annotated[JobSpec, Body()],
    context: Context,
    dry_run: Annotated[
        bool, Query(description="Only check, and estimate time and memory. Nothing is queued, no key is used up.")
    ] = False,
) -> JSONResponse:
    """Queue a job."""
    if dry_run:
        with context.reading() as session:
            named = context.jobs(session).check(spec)
            found = DryRun.of(spec, estimate(session, spec, named))
        return JSONResponse(found.model_dump(mode="json"))

    def submit(session: Any) -> Answer:
        job = context.jobs(session).submit(spec)
        return Answer(HTTPStatus.ACCEPTED, JobRead.of(job).model_dump(mode="json"), f"/v1/jobs/{job.id}")

    return context.once(spec.model_dump(mode="json"), submit)


@router.get("", operation_id="list_jobs", response_model=Page[JobRead], openapi_extra=METADATA_PARAMETER)
def list_jobs(
    context: Context,
    metadata: MetadataQuery,
    status: JobStatus | None = None,
    kind: JobKind | None = None,
    model_id: ModelId | None = None,
    created_after: Moment | None = None,
    created_before: Moment | None = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Response:
    """The project's jobs, newest first; those that meet every given condition."""
    wanted = JobFilter(
        status=status,
        kind=kind,
        model_id=model_id,
        metadata=metadata,
        created_after=created_after,
        created_before=created_before,
    )
    with context.reading() as session:
        rows = context.jobs(session).list(before=cursor, limit=limit + 1, wanted=wanted)
        artifacts = context.jobs(session).artifacts_of(rows)
        made = {row.id: [item for item in artifacts if item.job_id == row.id] for row in rows}
    place_of = context.services.outlook.place_of
    items = [JobRead.of(row, made[row.id], place=place_of(row)) for row in rows]
    found: Page[JobRead] = page(items, [row.id for row in rows], limit)
    return Response(found.model_dump_json(), media_type="application/json")  # FastAPI would validate it once more


@router.get(
    "/{job_id}",
    operation_id="get_job",
    response_model=JobRead,
    responses={HTTPStatus.NOT_MODIFIED: {"description": "It is as `If-None-Match` has it."}}
    | documented(HTTPStatus.NOT_FOUND),
)
async def get_job(
    job_id: JobId,
    request: Request,
    context: Context,
    wait: WaitS = 0,
    after: Annotated[Seq | None, Query(description="With `wait`: `last_event` as you know it.")] = None,
) -> Response:
    """One job, with an ETag. With `?wait=30`, answers at its next change after `after` (or from now on), or when it
    has ended.
    """
    job = await run_in_threadpool(read_job, context, job_id)
    if wait > 0:
        seen = job.last_event if after is None else after
        job = await context.services.listener.until(
            job_id,
            lambda: read_job(context, job_id),
            lambda now: now.last_event > seen or now.status.is_terminal,
            min(wait, context.settings.long_poll_max_s),
        )
    return tagged(request, job)


@router.get(
    "/{job_id}/events",
    operation_id="list_job_events",
    response_model=EventPage,
    responses={HTTPStatus.OK: {"content": {"text/event-stream": {}}}} | documented(HTTPStatus.NOT_FOUND),
)
async def list_job_events(
    job_id: JobId,
    request: Request,
    context: Context,
    after: Annotated[Seq, Query(description="Only events numbered above this.")] = 0,
    limit: Annotated[int, Query(ge=1, le=EVENTS_PER_READ)] = 100,
    last_event_id: Annotated[Seq | None, Header(description="Resume a stream after this event.")] = None,
) -> Any:
    """The job's events as a JSON list, or with `Accept: text/event-stream` as a stream that ends with the job."""
    job = await run_in_threadpool(read_job, context, job_id)
    if "text/event-stream" in request.headers.get("accept", ""):
        seen = after if last_event_id is None else last_event_id
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream_events(context, job.id, seen), media_type="text/event-stream", headers=headers)
    events = await run_in_threadpool(read_events, context, job_id, after, limit + 1)
    return EventPage(data=events[:limit], has_more=len(events) > limit)


@router.post(
    "/{job_id}/cancel",
    operation_id="cancel_job",
    response_model=JobRead,
    responses=documented(HTTPStatus.NOT_FOUND),
)
def cancel_job(job_id: JobId, context: Context) -> JSONResponse:
    """Stop a job. A running one ends within seconds; one that has ended stays as it is."""

    def cancel(session: Any) -> Answer:
        return Answer(HTTPStatus.OK, JobRead.of(context.jobs(session).cancel(job_id)).model_dump(mode="json"))

    return context.once(None, cancel)


@router.post(
    "/{job_id}/retry",
    operation_id="retry_job",
    status_code=HTTPStatus.ACCEPTED,
    response_model=JobRead,
    responses=documented(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
)
def retry_job(job_id: JobId, context: Context) -> JSONResponse:
    """Queue a failed or cancelled job again. One that ran out of time or memory, or whose process died, goes on from
    its last checkpoint; the others begin anew.
    """

    def retry(session: Any) -> Answer:
        job = context.jobs(session).retry(job_id)
        return Answer(HTTPStatus.ACCEPTED, JobRead.of(job).model_dump(mode="json"), f"/v1/jobs/{job.id}")

    return context.once(None, retry)


@router.post(
    "/{job_id}/clone",
    operation_id="clone_job",
    status_code=HTTPStatus.ACCEPTED,
    response_model=JobRead,
    responses=documented(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
)
def clone_job(
    job_id: JobId,
    context: Context,
    changes: Annotated[
        dict[str, Any] | None,
        Body(description="What is to be different, as a JSON merge patch (RFC 7396) of a `POST /v1/jobs` body."),
    ] = None,
) -> JSONResponse:
    """Queue a new job with the same parameters, seed and metadata, but for the deadline and what the body changes."""

    def clone(session: Any) -> Answer:
        original = context.jobs(session).get(job_id)
        job = context.jobs(session).submit(parse_changed(original, changes or {}), cloned_from=original.id)
        return Answer(HTTPStatus.ACCEPTED, JobRead.of(job).model_dump(mode="json"), f"/v1/jobs/{job.id}")

    return context.once(changes, clone)


@router.get(
    "/{job_id}/artifacts",
    operation_id="list_job_artifacts",
    response_model=list[ArtifactRead],
    responses=documented(HTTPStatus.NOT_FOUND),
)
def list_job_artifacts(job_id: JobId, context: Context) -> list[ArtifactRead]:
    """The files that the job produced."""
    return read_job(context, job_id).artifacts
