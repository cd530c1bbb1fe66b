"""A job as it is now and as it goes on: read in one short transaction, told as Server-Sent Events.

A stream holds neither a thread nor a connection while nothing happens: it waits on an event of the loop that the one
listening connection sets.
"""

from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool

from app.api.changes import wait_for
from app.api.context import RequestContext
from app.api.schemas.events import EventRead
from app.api.schemas.jobs import JobRead
from app.jobs.events import events_after, transitions
from app.jobs.status import JobStatus

EVENTS_PER_READ = 500
PING_S = 15.0
"""A stream says this often that it is still there, and looks again, whatever the listening connection says."""


def read_job(context: RequestContext, job_id: str) -> JobRead:
    """One job with its artifacts and transitions."""
    with context.reading() as session:
        job = context.jobs(session).get(job_id)
        artifacts, changes = context.jobs(session).artifacts_of([job]), transitions(session, job_id)
    return JobRead.of(job, artifacts, changes, context.services.outlook.place_of(job))


def read_events(context: RequestContext, job_id: str, seq: int, limit: int) -> list[EventRead]:
    """At most `limit` events numbered above `seq`."""
    with context.reading() as session:
        return [EventRead.of(event) for event in events_after(session, job_id, seq, limit=limit)]


async def stream_events(context: RequestContext, job_id: str, seen: int) -> AsyncIterator[str]:
    """What is there, then what comes, until the job has ended and all is told."""
    with context.services.listener.watch(job_id) as changed:
        while True:
            changed.clear()
            has_ended, last, events = await run_in_threadpool(_read_news, context, job_id, seen)
            for event in events:
                yield f"id: {event.seq}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
                seen = event.seq
            if seen < last:
                continue
            if has_ended or context.services.listener.is_ending:
                return
            if not await wait_for(changed, PING_S):
                yield ": still here\n\n"


def _read_news(context: RequestContext, job_id: str, seen: int) -> tuple[bool, int, list[EventRead]]:
    with context.reading() as session:
        job = context.jobs(session).get(job_id)
        events = events_after(session, job_id, seen, limit=EVENTS_PER_READ)
        return JobStatus(job.status).is_terminal, job.event_count, [EventRead.of(event) for event in events]
