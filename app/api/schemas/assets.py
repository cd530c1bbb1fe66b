"""What the API shows of models and datasets alike."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from app.artifacts.orm import AssetColumns, AssetStatus


class AssetRead(BaseModel):
    """What models and datasets have in common."""

    id: str
    name: str
    status: AssetStatus
    size_bytes: int
    sha256: str | None
    facts: dict[str, Any] | None
    error: dict[str, Any] | None
    metadata: dict[str, str]
    created_at: datetime
    links: dict[str, str]


def shared_fields(row: AssetColumns) -> dict[str, Any]:
    """The fields of an AssetRead, but for the links."""
    return {
        "id": row.id,
        "name": row.name,
        "status": row.status,
        "size_bytes": row.size_bytes,
        "sha256": row.digest,
        "facts": row.facts,
        "error": row.error,
        "metadata": row.metadata_,
        "created_at": row.created_at,
    }
