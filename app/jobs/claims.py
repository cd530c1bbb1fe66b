"""What a supervisor holds while it works on a job (see app.jobs.leases)."""

from dataclasses import dataclass

from app.jobs.origin import NOBODY, Origin
from app.json_object import JsonObject


@dataclass(frozen=True)
class Claim:
    """The right to work on a job until the lease ends."""

    job_id: str
    fence: int
    attempt: int
    is_last_attempt: bool
    kind: str
    project_id: str
    spec: JsonObject
    origin: Origin = NOBODY
