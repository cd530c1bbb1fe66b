"""The states of a job."""

from enum import StrEnum


class JobStatus(StrEnum):
    """A job moves queued -> running -> one of the terminal three; a lost worker sends it back to queued."""

    QUEUED = "queued"
    """Waits for a worker."""
    RUNNING = "running"
    """A supervisor holds its lease."""
    SUCCEEDED = "succeeded"
    """Its result and artifacts are committed."""
    FAILED = "failed"
    """`error` says why. It can be retried."""
    CANCELLED = "cancelled"
    """A client asked for it. It can be retried."""

    @property
    def is_terminal(self) -> bool:
        """Nothing happens to the job any more, unless somebody retries it."""
        return self in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}

    @property
    def has_outputs(self) -> bool:
        """An attempt ended the job, and what it produced is the job's."""
        return self in {JobStatus.SUCCEEDED, JobStatus.FAILED}
