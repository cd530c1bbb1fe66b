"""What a project may still store."""

from sqlalchemy.orm import Session

from app.artifacts.usage import holds, stored_bytes
from app.errors import QuotaError
from app.projects.quotas import hold_limit


def check_storage(session: Session, project_id: str, *, adding: int, digest: str | None = None) -> None:
    """Make sure that `adding` more bytes fit, and that nobody else uses the room before this transaction ends.

    With their `digest`, bytes that the project has already need no room.

    Raises:
        QuotaError: they do not fit.
    """
    most = hold_limit(session, project_id, "max_stored_bytes")
    if most is None or (digest is not None and holds(session, project_id, digest, adding)):
        return
    stored = stored_bytes(session, project_id)
    if stored + adding > most:
        more = f", and this needs {adding} more" if adding > 1 else ""
        raise QuotaError(
            f"The project stores {stored} of the {most} bytes that it may{more}.",
            hint="DELETE models, datasets and artifacts that are no longer needed, or ask the operator for more: "
            "`neusemslice projects set NAME --max-stored`.",
            code="storage_quota_exceeded",
        )
