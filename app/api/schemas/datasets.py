"""What the API shows of a dataset."""

from typing import Any

from app.api.schemas.assets import AssetRead, shared_fields
from app.artifacts.orm import DatasetRow


class DatasetRead(AssetRead):
    """A dataset."""

    reading: dict[str, Any]

    @classmethod
    def of(cls, row: DatasetRow) -> "DatasetRead":
        """From its row."""
        return cls(**shared_fields(row), reading=row.spec, links={"self": f"/v1/datasets/{row.id}"})
