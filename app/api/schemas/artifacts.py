"""What the API shows of an artifact."""

from datetime import datetime

from pydantic import BaseModel

from app.artifacts.orm import ArtifactRow


class ArtifactRead(BaseModel):
    """A file that a job produced."""

    id: str
    job_id: str
    name: str
    media_type: str
    size_bytes: int
    sha256: str
    created_at: datetime
    links: dict[str, str]

    @classmethod
    def of(cls, row: ArtifactRow) -> "ArtifactRead":
        """From its row."""
        return cls(
            id=row.id,
            job_id=row.job_id,
            name=row.name,
            media_type=row.media_type,
            size_bytes=row.size_bytes,
            sha256=row.digest,
            created_at=row.created_at,
            links={"content": f"/v1/artifacts/{row.id}/content"},
        )
