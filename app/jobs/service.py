"""What clients may do with jobs: submit, look, cancel, retry."""

from collections.abc import Sequence

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from app.artifacts.catalog import Catalog
from app.artifacts.orm import ArtifactRow, DatasetRow, ModelRow
from app.errors import ConflictError, FieldError, InvalidInputError, NotFoundError
from app.ids import new_id
from app.jobs.events import STATUS, add_event, announce
from app.jobs.leases import back_to_queue, ending
from app.jobs.orm import JobRow
from app.jobs.queue import enqueue
from app.jobs.specs import BRANCHES_OF_DEEPARC, JOB_KINDS, InspectionSpec, JobSpec, RestructureSpec, queue_of
from app.jobs.status import JobStatus


class JobService:
    """One project's jobs; what belongs to others does not exist here. The caller commits."""

    def __init__(self, session: Session, project_id: str, *, max_attempts: int) -> None:
        self._session = session
        self._project_id = project_id
        self._max_attempts = max_attempts
        self._catalog = Catalog(session, project_id)

    def submit(self, spec: JobSpec) -> JobRow:
        """Queue a job.

        Raises:
            NotFoundError: the model, dataset or slice is not in this project.
            ConflictError: the model or dataset is not ready, or was rejected.
            InvalidInputError: model, dataset and slice do not belong together.
        """
        model = self._catalog.get_ready(ModelRow, spec.model_id)
        if spec.dataset_id is not None:
            _check_fit(model, self._catalog.get_ready(DatasetRow, spec.dataset_id))
        if isinstance(spec, RestructureSpec) and spec.slice_id is not None:
            self._check_slice(spec, spec.slice_id, model)
        return self._add(spec)

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
        return self._find(job_id, for_update=False)

    def list(
        self, *, before: str | None, limit: int, status: JobStatus | None = None, kind: str | None = None
    ) -> Sequence[JobRow]:
        """At most `limit` jobs, newest first, older than the one called `before`."""
        kinds = JOB_KINDS if kind is None else (kind,)
        query = select(JobRow).where(JobRow.project_id == self._project_id, JobRow.kind.in_(kinds))
        if before is not None:
            query = query.where(JobRow.id < before)
        if status is not None:
            query = query.where(JobRow.status == status.value)
        return self._session.scalars(query.order_by(JobRow.id.desc()).limit(limit)).all()

    def artifacts_of(self, jobs: Sequence[JobRow]) -> Sequence[ArtifactRow]:
        """What the attempts that ended these jobs produced, oldest first; a job under way has nothing yet."""
        return self._catalog.artifacts_of([(job.id, job.fence) for job in jobs if JobStatus(job.status).is_terminal])

    def cancel(self, job_id: str) -> JobRow:
        """End a queued job at once; ask a running one to stop; leave an ended one as it is."""
        job = self._find(job_id, for_update=True)
        if job.status == JobStatus.QUEUED:
            self._set(job, **ending(JobStatus.CANCELLED))
            add_event(self._session, job.id, STATUS, {"status": JobStatus.CANCELLED.value, "attempt": job.attempt})
        elif job.status == JobStatus.RUNNING and not job.cancel_requested:
            self._set(job, cancel_requested=True)
            add_event(self._session, job.id, "cancel_requested", {})
        self._session.refresh(job)
        return job

    def retry(self, job_id: str) -> JobRow:
        """Queue a failed or cancelled job again, with a fresh set of attempts.

        Raises:
            ConflictError: it is still under way, or it has succeeded.
        """
        job = self._find(job_id, for_update=True)
        if job.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
            raise ConflictError(
                f"The job {job_id} is {job.status}; only failed and cancelled jobs can be retried.",
                hint="Submit a new job to run it once more.",
            )
        fresh = {"error": None, "finished_at": None, "cancel_requested": False}
        self._set(job, **back_to_queue(), **fresh, attempt_limit=job.attempt + self._max_attempts)
        add_event(self._session, job.id, STATUS, {"status": JobStatus.QUEUED.value, "reason": "retried"})
        enqueue(self._session, job)
        self._session.refresh(job)
        return job

    def _add(self, spec: JobSpec | InspectionSpec) -> JobRow:
        values = spec.model_dump(mode="json")
        job = JobRow(
            id=new_id("job"),
            project_id=self._project_id,
            kind=spec.kind,
            queue=queue_of(spec.kind),
            metadata_=values.pop("metadata", {}),
            spec=values,
            attempt_limit=self._max_attempts,
        )
        self._session.add(job)
        self._session.flush()
        enqueue(self._session, job)
        add_event(self._session, job.id, STATUS, {"status": JobStatus.QUEUED.value})
        self._session.refresh(job)
        return job

    def _find(self, job_id: str, *, for_update: bool) -> JobRow:
        job = self._session.get(JobRow, job_id, with_for_update=for_update)
        if job is None or job.project_id != self._project_id:
            raise NotFoundError(f"There is no job {job_id!r} in this project.", hint="Check the id and the API key.")
        return job

    def _set(self, job: JobRow, **values: object) -> None:
        self._session.execute(update(JobRow).where(JobRow.id == job.id).values(**values))

    def _check_slice(self, spec: RestructureSpec, slice_id: str, model: ModelRow) -> None:
        artifact = self._catalog.artifact(slice_id)
        made_by = self.get(artifact.job_id).spec
        made_from = made_by.get("model_id")
        if not artifact.name.startswith("slice") or made_from != model.id:
            detail = f"{slice_id} is {artifact.name} of {made_from}, not a slice of {model.id}"
            raise InvalidInputError(
                f"The slice does not belong to the model: {detail}.",
                errors=[FieldError("/slice_id", detail)],
                hint="Give the id of a slice.safetensors that a slice job made from this very model.",
            )
        if made_by["slicing"]["strategy"] != "deeparc":
            return
        if spec.branches != "union":
            errors = [FieldError("/branches", BRANCHES_OF_DEEPARC)]
            raise InvalidInputError(BRANCHES_OF_DEEPARC, errors=errors, hint="Leave branches out.")
        if spec.dataset_id is None:
            detail = "the layers that stand in for those that a deeparc slice takes out are fitted to samples"
            raise InvalidInputError(
                f"There is no dataset: {detail}.",
                errors=[FieldError("/dataset_id", detail)],
                hint="Give the dataset that the slice was made on.",
            )


def _check_fit(model: ModelRow, dataset: DatasetRow) -> None:
    """A model and a dataset whose shapes or categories differ can be refused before anything runs."""
    wanted, offered = model.facts or {}, dataset.facts or {}
    if wanted["categories"] == 1:
        detail = "the model has one output, as a regression has, and a dataset's labels are categories"
        raise InvalidInputError(
            f"No dataset fits the model: {detail}.",
            errors=[FieldError("/model_id", detail)],
            hint="Use the library: neusemslice.slice_model takes labels that are real numbers.",
        )
    for field, noun in (("input_shape", "shape"), ("categories", "number of categories")):
        if wanted[field] != offered[field]:
            detail = f"the model takes {noun} {wanted[field]}, the dataset has {offered[field]}"
            raise InvalidInputError(
                f"The dataset does not fit the model: {detail}.",
                errors=[FieldError("/dataset_id", detail)],
                hint="Upload the dataset with a matching preprocess, or choose another model.",
            )
