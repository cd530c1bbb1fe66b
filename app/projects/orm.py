"""Tables of who may do what, how much of it, and who did."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, JsonObject, Timestamped


class ProjectRow(Timestamped, Base):
    """A project owns models, datasets and jobs; nobody else sees them. A limit that is absent does not limit."""

    __tablename__ = "projects"
    __table_args__ = (Index("ix_projects_name", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    max_running_jobs: Mapped[int | None]
    """How many of its jobs may run at once, inspections aside. Without it, as many as there are workers."""
    max_queued_jobs: Mapped[int | None]
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    requests_per_minute: Mapped[int | None]
    deleted_at: Mapped[datetime | None]


class ApiKeyRow(Timestamped, Base):
    """An API key; only digests of its secret, and for a while of the one before it, are kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    previous_sha256: Mapped[bytes | None] = mapped_column(LargeBinary)
    previous_until: Mapped[datetime | None]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(String))
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """To within a minute."""


class AuditRow(Timestamped, Base):
    """Somebody changed something. A trigger keeps rows from being changed, and from being deleted before their time."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("ix_audit_log_project_id_id", "project_id", "id"),
        Index("ix_audit_log_object_id", "object_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    actor: Mapped[str]
    """`key:<id>`, `cli:<user>`, `keyless`, or `service` for what no request asked for."""
    action: Mapped[str]
    """`<noun>.<verb>`, such as `job.cancel`."""
    object_id: Mapped[str]
    request_id: Mapped[str | None]
    address: Mapped[str | None]
    details: Mapped[JsonObject]


class RequestBucketRow(Base):
    """What is left of a project's requests. Unlogged: after a crash of the server it is full again."""

    __tablename__ = "request_buckets"
    __table_args__ = ({"prefixes": ["UNLOGGED"]},)

    project_id: Mapped[str] = mapped_column(primary_key=True)
    tokens: Mapped[float]
    filled_at: Mapped[datetime]
