"""What the service still needs of what it has stored.

Every column that names a blob has its place here; a test compares them with the tables.
"""

from datetime import timedelta

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.artifacts.orm import ArtifactRow, BlobRow, DatasetRow, ModelRow, UploadRow
from app.jobs.orm import AnalysisRow, JobRow
from app.jobs.specs import references
from app.jobs.status import JobStatus

RETRYABLE_KEPT = timedelta(days=1)
"""A job that failed or was cancelled so recently may be retried, and then needs what it names."""

_BATCH = 500

Digest = InstrumentedAttribute[str] | InstrumentedAttribute[str | None]
Deletable = type[ModelRow] | type[DatasetRow] | type[ArtifactRow]

OF_DELETABLE: tuple[tuple[Digest, Deletable], ...] = (
    (ModelRow.digest, ModelRow),
    (ModelRow.source_digest, ModelRow),
    (DatasetRow.digest, DatasetRow),
    (DatasetRow.source_digest, DatasetRow),
    (ArtifactRow.digest, ArtifactRow),
)
"""These rows need their blobs, unless they were deleted long enough ago and no job names them."""
OF_OTHERS: tuple[Digest, ...] = (AnalysisRow.digest, UploadRow.digest)
"""These rows need their blobs for as long as they are there."""


def named_by_jobs(session: Session) -> frozenset[str]:
    """The ids of all that jobs name which are under way, or might be again."""
    under_way = JobRow.status.in_((JobStatus.QUEUED.value, JobStatus.RUNNING.value))
    ended = JobRow.status.in_((JobStatus.FAILED.value, JobStatus.CANCELLED.value))
    recently = JobRow.finished_at > func.clock_timestamp() - RETRYABLE_KEPT
    query = select(JobRow.spec).where(or_(under_way, and_(ended, recently)))
    specs = session.scalars(query, execution_options={"yield_per": _BATCH})
    return frozenset(stored for spec in specs for stored in references(spec).values())


def unneeded(named: frozenset[str], grace: timedelta) -> Select[str, int]:
    """Blobs that nobody has put or come to rely on for `grace`, and that no row needs."""
    silent = BlobRow.touched_at < func.clock_timestamp() - grace
    return select(BlobRow.digest, BlobRow.size_bytes).where(silent, *no_row_needs(named, grace))


def no_row_needs(named: frozenset[str], grace: timedelta) -> list[ColumnElement[bool]]:
    """Conditions on a BlobRow."""
    deletable = [~exists().where(column == BlobRow.digest, _is_kept(row, named, grace)) for column, row in OF_DELETABLE]
    return deletable + [~exists().where(column == BlobRow.digest) for column in OF_OTHERS]


def _is_kept(row: Deletable, named: frozenset[str], grace: timedelta) -> ColumnElement[bool]:
    recently = row.deleted_at > func.clock_timestamp() - grace
    return or_(row.deleted_at.is_(None), recently, row.id.in_(named))
