"""What a project has stored."""

from sqlalchemy import CompoundSelect, func, select, union_all
from sqlalchemy.orm import Session

from app.artifacts.orm import ArtifactRow, BlobRow, DatasetRow, ModelRow, UploadRow, UploadStatus


def stored_bytes(session: Session, project_id: str) -> int:
    """Bytes of everything in the project that was not deleted, the same bytes once, and of uploads under way as
    declared. Reads the project's rows by index, and no file.
    """
    held = _holdings(project_id).subquery()
    size = func.max(func.coalesce(BlobRow.size_bytes, held.c.size_bytes)).label("size_bytes")
    blobs = (
        select(size)
        .select_from(held)
        .outerjoin(BlobRow, BlobRow.digest == held.c.digest)
        .group_by(held.c.digest)
        .subquery()
    )
    arriving = select(func.coalesce(func.sum(UploadRow.size_bytes), 0)).where(
        UploadRow.project_id == project_id, UploadRow.status != UploadStatus.COMPLETE.value
    )
    stored = session.execute(select(func.coalesce(func.sum(blobs.c.size_bytes), 0))).scalar_one()
    return int(stored) + int(session.execute(arriving).scalar_one())


def holds(session: Session, project_id: str, digest: str, size_bytes: int) -> bool:
    """Whether these very bytes are in the project already. Another project's do not count."""
    held = _holdings(project_id).subquery()
    size = func.coalesce(BlobRow.size_bytes, held.c.size_bytes)
    query = select(held.c.digest).select_from(held).outerjoin(BlobRow, BlobRow.digest == held.c.digest)
    return session.execute(query.where(held.c.digest == digest, size == size_bytes).limit(1)).first() is not None


def _holdings(project_id: str) -> CompoundSelect[tuple[str | None, int]]:
    """Digests with the size that their row states; that of a source is right only until it was inspected."""
    living = [
        select(digest, row.size_bytes).where(
            row.project_id == project_id, row.deleted_at.is_(None), digest.is_not(None)
        )
        for row, digest in (
            (ModelRow, ModelRow.digest),
            (ModelRow, ModelRow.source_digest),
            (DatasetRow, DatasetRow.digest),
            (DatasetRow, DatasetRow.source_digest),
            (ArtifactRow, ArtifactRow.digest),
        )
    ]
    complete = UploadRow.status == UploadStatus.COMPLETE.value, UploadRow.expires_at > func.clock_timestamp()
    uploaded = select(UploadRow.digest, UploadRow.size_bytes).where(UploadRow.project_id == project_id, *complete)
    return union_all(*living, uploaded)
