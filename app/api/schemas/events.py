"""What the API shows of a job's events."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from app.jobs.orm import JobEventRow


class EventRead(BaseModel):
    """Something that happened to a job."""

    seq: int
    type: str
    at: datetime
    data: dict[str, Any]

    @classmethod
    def of(cls, row: JobEventRow) -> "EventRead":
        """From its row."""
        return cls(seq=row.seq, type=row.type, at=row.at, data=row.data)


class EventPage(BaseModel):
    """Events in order; ask on with `after` = the last `seq`."""

    data: list[EventRead]
    has_more: bool
