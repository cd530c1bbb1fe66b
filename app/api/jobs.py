"""`/v1/jobs`: submit, list, watch, cancel, retry."""

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from app.api.changes import wait_for
from app.api.context import Answer, Context, Cursor, Limit, RequestContext, WaitS
from app.api.problems import documented
from app.api.schemas import ArtifactRead, EventPage, EventRead, JobRead, Page, page
from app.jobs.events import events_after, transitions
from app.jobs.specs import JobId, JobKind, JobSpec
from app.jobs.status import JobStatus

EVENTS_PER_READ = 500
PING_S = 15.0
Seq = Annotated[int, Field(ge=0, lt=2**31)]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.post(
    "",
    operation_id="create_job",
    status_code=HTTPStatus.ACCEPTED,
    response_model=JobRead,
    responses=documented(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
)
def create_job(spec: Annotated[JobSpec, Body()], context: Context) -> JSONResponse:
    """Queue a job."""

    def submit(session: Any) -> Answer:
        job = context.jobs(session).submit(spec)
        return Answer(HTTPStatus.ACCEPTED, JobRead.of(job).model_dump(mode="json"), f"/v1/jobs/{job.id}")

    return context.once(spec.model_dump(mode="json"), submit)


@router.get("", operation_id="list_jobs", response_model=Page[JobRead])
def list_jobs(
    context: Context,
    status: JobStatus | None = None,
    kind: JobKind | None = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[JobRead]:
    """The project's jobs, newest first."""
    with context.transaction() as session:
        rows = context.jobs(session).list(before=cursor, limit=limit + 1, status=status, kind=kind)
        artifacts = context.jobs(session).artifacts_of(rows)
        made = {row.id: [item for item in artifacts if item.job_id == row.id] for row in rows}
    place_of = context.services.outlook.place_of
    items = [JobRead.of(row, made[row.id], place=place_of(row)) for row in rows]
    return page(items, [row.id for row in rows], limit)


@router.get("/{job_id}", operation_id="get_job", response_model=JobRead, responses=documented(HTTPStatus.NOT_FOUND))
async def get_job(
    job_id: JobId,
    context: Context,
    wait: WaitS = 0,
    after: Annotated[Seq | None, Query(description="With `wait`: `last_event` as you know it.")] = None,
) -> JobRead:
    """One job. With `?wait=30`, answers at its next change after `after` (or from now on), or when it has ended."""
    job = await run_in_threadpool(read_job, context, job_id)
    seen = job.last_event if after is None else after
    if wait == 0:
        return job
    return await context.services.listener.until(
        job_id,
        lambda: read_job(context, job_id),
        lambda now: now.last_event > seen or now.status.is_terminal,
        min(wait, context.settings.long_poll_max_s),
    )


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
        return StreamingResponse(_stream(context, job.id, seen), media_type="text/event-stream", headers=headers)
    events = await run_in_threadpool(_read_events, context, job_id, after, limit + 1)
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


@router.get(
    "/{job_id}/artifacts",
    operation_id="list_job_artifacts",
    response_model=list[ArtifactRead],
    responses=documented(HTTPStatus.NOT_FOUND),
)
def list_job_artifacts(job_id: JobId, context: Context) -> list[ArtifactRead]:
    """The files that the job produced."""
    return read_job(context, job_id).artifacts


def read_job(context: RequestContext, job_id: str) -> JobRead:
    """One job with its artifacts and transitions."""
    with context.transaction() as session:
        job = context.jobs(session).get(job_id)
        artifacts, changes = context.jobs(session).artifacts_of([job]), transitions(session, job_id)
    return JobRead.of(job, artifacts, changes, context.services.outlook.place_of(job))


def _read_events(context: RequestContext, job_id: str, seq: int, limit: int) -> list[EventRead]:
    with context.transaction() as session:
        return [EventRead.of(event) for event in events_after(session, job_id, seq, limit=limit)]


async def _stream(context: RequestContext, job_id: str, seen: int) -> AsyncIterator[str]:
    """Events as Server-Sent Events: what is there, then what comes, until the job has ended."""
    clock = asyncio.get_running_loop().time
    sent_at = clock()
    with context.services.listener.watch(job_id) as changed:
        while True:
            changed.clear()
            job = await run_in_threadpool(read_job, context, job_id)
            for event in await run_in_threadpool(_read_events, context, job_id, seen, EVENTS_PER_READ):
                yield f"id: {event.seq}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
                seen, sent_at = event.seq, clock()
            if seen >= job.last_event and (job.status.is_terminal or context.services.listener.is_ending):
                return
            if seen >= job.last_event:
                await wait_for(changed, PING_S / 3)
            if clock() - sent_at >= PING_S:
                yield ": still here\n\n"
                sent_at = clock()
