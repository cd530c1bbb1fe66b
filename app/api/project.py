"""`/v1/project`: the caller's own project, what it may have and what it has."""

from dataclasses import asdict
from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel

from app.api.context import Context
from app.artifacts.usage import stored_bytes
from app.jobs.queue_quota import count_jobs
from app.projects.directory import Limits
from app.projects.orm import ProjectRow

router = APIRouter(prefix="/v1/project", tags=["project"])


class LimitsRead(BaseModel):
    """What the operator lets the project have; null is without limit."""

    max_running_jobs: int | None
    max_queued_jobs: int | None
    max_stored_bytes: int | None
    requests_per_minute: int | None


class UsageRead(BaseModel):
    """What the project has now."""

    queued_jobs: int
    running_jobs: int
    stored_bytes: int


class ProjectRead(BaseModel):
    """A project."""

    id: str
    name: str
    created_at: datetime
    limits: LimitsRead
    usage: UsageRead


@router.get("", operation_id="get_project", response_model=ProjectRead)
def get_project(context: Context) -> ProjectRead:
    """Your project, with its limits and what it uses of them."""
    with context.reading() as session:
        row = session.get_one(ProjectRow, context.principal.project_id)
        jobs = count_jobs(session, row.id)
        return ProjectRead(
            id=row.id,
            name=row.name,
            created_at=row.created_at,
            limits=LimitsRead(**asdict(Limits.of(row))),
            usage=UsageRead(
                queued_jobs=jobs.queued, running_jobs=jobs.running, stored_bytes=stored_bytes(session, row.id)
            ),
        )
