"""Tables of the job's life."""

from datetime import datetime

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, LargeBinary, SmallInteger, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, JsonObject, Timestamped
from app.jobs.status import JobStatus


class JobRow(Timestamped, Base):
    """One job. This row is the truth about it; a queue message is only a hint that carries its id."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(
            "ix_jobs_queued",
            *("queue", "project_id", "priority", "id"),
            postgresql_where=text("status = 'queued'"),
            postgresql_include=["kind"],
        ),
        Index("ix_jobs_running", "queue", "project_id", postgresql_where=text("status = 'running'")),
        Index("ix_jobs_succeeded", "kind", "finished_at", postgresql_where=text("status = 'succeeded'")),
        Index("ix_jobs_project_id_id", "project_id", "id"),
        Index("ix_jobs_project_id_status_id", "project_id", "status", "id"),
        Index("ix_jobs_project_id_kind_id", "project_id", "kind", "id"),
        Index(
            "uq_jobs_shard",
            *("parent_job_id", "shard_index"),
            unique=True,
            postgresql_where=text("parent_job_id IS NOT NULL"),
        ),
        Index("ix_jobs_project_id_created_at", "project_id", "created_at"),
        Index("ix_jobs_metadata", "metadata", postgresql_using="gin", postgresql_ops={"metadata": "jsonb_path_ops"}),
        Index("ix_jobs_model", "project_id", text("(spec ->> 'model_id')")),
        Index("ix_jobs_deadline", "deadline", postgresql_where=text("status = 'queued'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    kind: Mapped[str]
    queue: Mapped[str]
    spec: Mapped[JsonObject]
    metadata_: Mapped[JsonObject] = mapped_column("metadata", default=dict)
    status: Mapped[str] = mapped_column(default=JobStatus.QUEUED.value)
    priority: Mapped[int] = mapped_column(SmallInteger, default=0, server_default="0")
    """Larger is sooner; see app.jobs.fairness."""

    attempt: Mapped[int] = mapped_column(default=0)
    """How often a supervisor has claimed it."""
    attempt_limit: Mapped[int]
    fence: Mapped[int] = mapped_column(default=0)
    """Rises with every claim; a supervisor may write only while it holds the highest one."""
    lease_owner: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    cancel_requested: Mapped[bool] = mapped_column(Boolean, default=False)

    parent_job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    """Of a shard: the job whose analysis it is a part of."""
    shard_index: Mapped[int | None] = mapped_column(SmallInteger)

    progress: Mapped[JsonObject | None]
    result: Mapped[JsonObject | None]
    error: Mapped[JsonObject | None]
    versions: Mapped[JsonObject | None]
    event_count: Mapped[int] = mapped_column(default=0)

    max_runtime_s: Mapped[float | None]
    """How long one attempt may run, of the job or of a shard of it; the operator's limit holds besides."""
    deadline: Mapped[datetime | None]
    """The job is of no use after it."""
    cloned_from: Mapped[str | None]

    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    queued_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    """When it was last put into the queue."""

    request_id: Mapped[str | None]
    """The request that submitted it."""
    traceparent: Mapped[str | None]
    """That request's place in a trace (W3C Trace Context)."""


class JobEventRow(Base):
    """Something that happened to a job; `seq` counts from 1 without gaps."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_status", "job_id", "seq", postgresql_where=text("type = 'status'")),)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    data: Mapped[JsonObject]


class AttemptLogRow(Timestamped, Base):
    """What the process of one attempt printed, cut to a bounded size."""

    __tablename__ = "attempt_logs"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    content: Mapped[bytes] = mapped_column(LargeBinary)


class AnalysisRow(Timestamped, Base):
    """An analysis that a job has made; `key` names all that it rests on."""

    __tablename__ = "analyses"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    digest: Mapped[str] = mapped_column(index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    used_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    """When a job last made it or found it."""


class OutboxRow(Timestamped, Base):
    """A message still to be published; written in the job's transaction, removed once the queue has it."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    queue: Mapped[str]


class IdempotencyRow(Timestamped, Base):
    """The answer to a POST that carried an Idempotency-Key; written in that request's transaction."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    fingerprint: Mapped[str]
    answer: Mapped[JsonObject | None]
