"""What clients may do with jobs: submit, look, cancel, retry."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, or_, select, update
from sqlalchemy.orm import Session

from app.artifacts.catalog import Catalog
from app.artifacts.orm import ArtifactRow, DatasetRow, ModelRow
from app.artifacts.storage_quota import check_storage
from app.errors import ConflictError, NotFoundError
from app.ids import new_id
from app.jobs import shards
from app.jobs.deadlines import has_passed, require_ahead
from app.jobs.events import STATUS, add_event, add_first_event, announce
from app.jobs.fairness import LEVELS
from app.jobs.filters import JobFilter
from app.jobs.fit import Named, StoredFile, check_fit
from app.jobs.leases import back_to_queue, ending
from app.jobs.origin import NOBODY, Origin
from app.jobs.orm import JobRow
from app.jobs.queue import enqueue
from app.jobs.queue_quota import check_queue
from app.jobs.specs import ClientSpec, InspectionSpec, queue_of
from app.jobs.status import JobStatus
from app.projects.audit import record


class JobService:
    """One project's jobs; what belongs to others does not exist here. The caller commits."""

    def __init__(self, session: Session, project_id: str, *, max_attempts: int, origin: Origin = NOBODY) -> None:
        self._session = session
        self._project_id = project_id
        self._max_attempts = max_attempts
        self._origin = origin
        self._catalog = Catalog(session, project_id)

    def check(self, spec: ClientSpec) -> Named:
        """What the job would work on, if it could be queued.

        Raises:
            NotFoundError: the model, dataset or slice is not in this project.
            ConflictError: the model or dataset is not ready, or was rejected.
            InvalidInputError: model, dataset and slice do not belong together, or the deadline has passed.
        """
        named = self._find_named(spec)
        check_fit(spec, named)
        require_ahead(self._session, spec.deadline)
        return named

    def submit(self, spec: ClientSpec, *, cloned_from: str | None = None) -> JobRow:
        """Queue a job.

        Raises:
            NotFoundError: the model, dataset or slice is not in this project.
            ConflictError: the model or dataset is not ready, or was rejected.
            InvalidInputError: model, dataset and slice do not belong together, or the deadline has passed.
            QuotaError: the project may have no more jobs waiting, or stores too much already.
        """
        self.check(spec)
        check_queue(self._session, self._project_id)
        check_storage(self._session, self._project_id, adding=1)
        job = self._add(spec, max_runtime_s=spec.max_runtime_s, deadline=spec.deadline, cloned_from=cloned_from)
        record(self._session, self._project_id, "job.create", job.id, kind=job.kind)
        return job

    def inspect(self, spec: InspectionSpec) -> JobRow:
        """Queue the inspection of an upload."""
        return self._add(spec)

    def cancel_inspection(self, asset_id: str) -> None:
        """Cancel what still inspects a model or dataset that nobody wants any more."""
        asset = or_(JobRow.spec["model_id"].astext == asset_id, JobRow.spec["dataset_id"].astext == asset_id)
        under_way = JobRow.status.in_((JobStatus.QUEUED.value, JobStatus.RUNNING.value))
        query = select(JobRow.id).where(JobRow.project_id == self._project_id, JobRow.queue == "inspect", under_way)
        for job_id in self._session.scalars(query.where(asset)).all():
            self.cancel(job_id)
        announce(self._session, asset_id)

    def get(self, job_id: str) -> JobRow:
        """One job.

        Raises:
            NotFoundError: this project has none with that id.
        """
        job = self._find(job_id, for_update=False)
        if job.parent_job_id is not None:
            raise _no_job(job_id)
        return job

    def lineage(self, model_id: str) -> Sequence[tuple[ModelRow, JobRow | None]]:
        """A model and what it was made from, up to the upload, each with the job that produced it."""
        line = self._catalog.line_of(model_id)
        made_by = [model.produced_by_job_id for model in line if model.produced_by_job_id is not None]
        query = select(JobRow).where(JobRow.id.in_(made_by))
        jobs = {job.id: job for job in self._session.scalars(query)} if made_by else {}
        return [(model, jobs.get(model.produced_by_job_id or "")) for model in line]

    def list(self, *, before: str | None, limit: int, wanted: JobFilter = JobFilter()) -> Sequence[JobRow]:
        """At most `limit` of the jobs that are wanted, newest first, older than the one called `before`."""
        query = select(JobRow).where(JobRow.project_id == self._project_id, *wanted.conditions())
        if before is not None:
            query = query.where(JobRow.id < before)
        return self._session.scalars(query.order_by(JobRow.id.desc()).limit(limit)).all()

    def artifacts_of(self, jobs: Sequence[JobRow]) -> Sequence[ArtifactRow]:
        """What the attempts that ended these jobs produced, oldest first; a job under way has nothing yet.

        Neither has a cancelled one, even if an earlier attempt failed and left something before it was retried.
        """
        ended = [(job.id, job.fence) for job in jobs if JobStatus(job.status).has_outputs]
        return self._catalog.artifacts_of(ended) if ended else []

    def cancel(self, job_id: str) -> JobRow:
        """End a queued job at once; ask a running one to stop; leave an ended one as it is."""
        job = self._find(job_id, for_update=True)
        if job.status == JobStatus.QUEUED:
            self._set(job, **ending(JobStatus.CANCELLED))
            add_event(self._session, job.id, STATUS, {"status": JobStatus.CANCELLED.value, "attempt": job.attempt})
            record(self._session, self._project_id, "job.cancel", job.id)
        elif shards.is_waiting(job):
            shards.cancel(self._session, job)
            record(self._session, self._project_id, "job.cancel", job.id)
        elif job.status == JobStatus.RUNNING and not job.cancel_requested:
            self._set(job, cancel_requested=True)
            add_event(self._session, job.id, "cancel_requested", {})
            record(self._session, self._project_id, "job.cancel", job.id)
        self._session.refresh(job)
        return job

    def retry(self, job_id: str) -> JobRow:
        """Queue a failed or cancelled job again, with a fresh set of attempts.

        Raises:
            ConflictError: it is still under way, it has succeeded, or its deadline has passed.
            QuotaError: the project may have no more jobs waiting.
        """
        job = self._find(job_id, for_update=True)
        if job.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
            raise ConflictError(
                f"The job {job_id} is {job.status}; only failed and cancelled jobs can be retried.",
                hint="Submit a new job to run it once more.",
            )
        if has_passed(self._session, job.deadline):
            raise ConflictError(
                f"The deadline of the job {job_id} has passed: {job.deadline}.",
                hint="POST …/clone, with another deadline or none.",
            )
        check_queue(self._session, self._project_id)
        fresh = {"error": None, "finished_at": None, "cancel_requested": False}
        self._set(job, **back_to_queue(), **fresh, attempt_limit=job.attempt + self._max_attempts)
        add_event(self._session, job.id, STATUS, {"status": JobStatus.QUEUED.value, "reason": "retried"})
        enqueue(self._session, job)
        record(self._session, self._project_id, "job.retry", job.id)
        self._session.refresh(job)
        return job

    def _find_named(self, spec: ClientSpec) -> Named:
        model = self._catalog.get_ready(ModelRow, spec.model_id)
        datasets, files = {}, {}
        for pointer, stored_id in spec.references().items():
            if stored_id.startswith("ds_"):
                datasets[pointer] = self._catalog.get_ready(DatasetRow, stored_id)
            elif stored_id.startswith("art_"):
                artifact = self._catalog.artifact(stored_id)
                files[pointer] = StoredFile(artifact, self.get(artifact.job_id).spec)
        return Named(model, datasets, files)

    def _add(self, spec: ClientSpec | InspectionSpec, **columns: Any) -> JobRow:
        values = spec.model_dump(mode="json", exclude=set(columns))
        new = insert(JobRow).values(
            id=new_id("job"),
            project_id=self._project_id,
            kind=spec.kind,
            queue=queue_of(spec.kind),
            priority=LEVELS[values.pop("priority", "normal")],
            metadata_=values.pop("metadata", {}),
            spec=values,
            attempt_limit=self._max_attempts,
            event_count=1,
            request_id=self._origin.request_id,
            traceparent=self._origin.traceparent,
            **columns,
        )
        job = self._session.scalars(new.returning(JobRow)).one()
        enqueue(self._session, job)
        add_first_event(self._session, job)
        return job

    def _find(self, job_id: str, *, for_update: bool) -> JobRow:
        job = self._session.get(JobRow, job_id, with_for_update={"key_share": True} if for_update else None)
        if job is None or job.project_id != self._project_id:
            raise _no_job(job_id)
        return job

    def _set(self, job: JobRow, **values: object) -> None:
        self._session.execute(update(JobRow).where(JobRow.id == job.id).values(**values))


def _no_job(job_id: str) -> NotFoundError:
    return NotFoundError(f"There is no job {job_id!r} in this project.", hint="Check the id and the API key.")
