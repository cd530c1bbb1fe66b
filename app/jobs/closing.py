"""The end of a project, with everything in it."""

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.artifacts.orm import ArtifactRow, DatasetRow, ModelRow, UploadRow
from app.jobs.orm import JobRow
from app.jobs.service import JobService
from app.jobs.status import JobStatus
from app.projects.directory import close_project, find_project


def delete_project(session: Session, name: str) -> None:
    """Revoke the project's keys, cancel its jobs, delete what it stores, and free its name.

    Raises:
        NotFoundError: there is no such project.
    """
    project = find_project(session, name)
    close_project(session, project)
    jobs = JobService(session, project.id, max_attempts=1)
    under_way = JobRow.status.in_((JobStatus.QUEUED.value, JobStatus.RUNNING.value))
    for job_id in session.scalars(select(JobRow.id).where(JobRow.project_id == project.id, under_way)).all():
        jobs.cancel(job_id)
    now = func.clock_timestamp()
    for kind in (ModelRow, DatasetRow, ArtifactRow):
        living = kind.project_id == project.id, kind.deleted_at.is_(None)
        session.execute(update(kind).where(*living).values(deleted_at=now))
    session.execute(update(UploadRow).where(UploadRow.project_id == project.id).values(expires_at=now))
