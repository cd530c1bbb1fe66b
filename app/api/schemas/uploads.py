"""What the API shows of an upload in parts."""

from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel

from app.artifacts.orm import UploadPartRow, UploadRow, UploadStatus
from app.artifacts.uploads import part_count


class UploadPartRead(BaseModel):
    """A part that has arrived."""

    number: int
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, row: UploadPartRow) -> "UploadPartRead":
        """From its row."""
        return cls(number=row.number, size_bytes=row.size_bytes, sha256=row.sha256)


class UploadRead(BaseModel):
    """An upload in parts. `sha256` is the declared one until the file is complete, then its own."""

    id: str
    name: str
    status: UploadStatus
    size_bytes: int
    part_bytes: int
    part_count: int
    parts: list[UploadPartRead]
    sha256: str | None
    created_at: datetime
    expires_at: datetime
    links: dict[str, str]

    @classmethod
    def of(cls, row: UploadRow, parts: Iterable[UploadPartRow]) -> "UploadRead":
        """From its rows."""
        base = f"/v1/uploads/{row.id}"
        return cls(
            id=row.id,
            name=row.name,
            status=UploadStatus(row.status),
            size_bytes=row.size_bytes,
            part_bytes=row.part_bytes,
            part_count=part_count(row),
            parts=[UploadPartRead.of(part) for part in parts],
            sha256=row.digest if row.status == UploadStatus.COMPLETE else row.sha256,
            created_at=row.created_at,
            expires_at=row.expires_at,
            links={"self": base, "parts": f"{base}/parts/{{number}}", "complete": f"{base}/complete"},
        )
