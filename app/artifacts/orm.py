"""Tables of what was uploaded and produced."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, JsonObject, Timestamped


class AssetStatus(StrEnum):
    """Where a model or dataset stands."""

    PROCESSING = "processing"
    """Its inspection has not finished."""
    READY = "ready"
    """Jobs may use it."""
    REJECTED = "rejected"
    """Its inspection found it unusable; `error` says why."""


class AssetColumns(Timestamped):
    """What models and datasets have in common."""

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    status: Mapped[str] = mapped_column(default=AssetStatus.PROCESSING.value)
    spec: Mapped[JsonObject]
    source_digest: Mapped[str] = mapped_column(index=True)
    digest: Mapped[str | None] = mapped_column(index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    facts: Mapped[JsonObject | None]
    error: Mapped[JsonObject | None]
    metadata_: Mapped[JsonObject] = mapped_column("metadata", default=dict)
    updated_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp(), onupdate=func.clock_timestamp())
    deleted_at: Mapped[datetime | None]


class ModelRow(AssetColumns, Base):
    """A network: `spec` is its architecture, `digest` its stored canonical checkpoint."""

    __tablename__ = "models"

    parent_model_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"))
    produced_by_job_id: Mapped[str | None]


class DatasetRow(AssetColumns, Base):
    """A dataset: `spec` says how to read it, `digest` names its stored canonical file."""

    __tablename__ = "datasets"


class ArtifactRow(Timestamped, Base):
    """A file that a job produced."""

    __tablename__ = "artifacts"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    fence: Mapped[int]
    """Of the attempt that produced it."""
    name: Mapped[str]
    media_type: Mapped[str]
    digest: Mapped[str] = mapped_column(index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    deleted_at: Mapped[datetime | None]


class BlobRow(Base):
    """Bytes that the store has, or is about to have: whoever puts them announces them here first."""

    __tablename__ = "blobs"

    digest: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    touched_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp(), index=True)
    """When somebody last put them, or came to rely on them; for a while after that they stay in any case."""


class UploadStatus(StrEnum):
    """Where an upload in parts stands."""

    OPEN = "open"
    """Parts may come."""
    COMPLETING = "completing"
    """All parts are there and are being verified."""
    COMPLETE = "complete"
    """The store has the file: a model or dataset may be made of it."""


class UploadRow(Timestamped, Base):
    """A file that a client sends in parts."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    part_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None]
    """As the client declared it."""
    status: Mapped[str] = mapped_column(default=UploadStatus.OPEN.value)
    digest: Mapped[str | None] = mapped_column(index=True)
    """As the server has found it."""
    expires_at: Mapped[datetime] = mapped_column(index=True)


class UploadPartRow(Base):
    """A part that has arrived whole; numbers count from 1."""

    __tablename__ = "upload_parts"

    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    received_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


StoredRow = ModelRow | DatasetRow | ArtifactRow
TABLES: dict[str, type[Any]] = {"mdl": ModelRow, "ds": DatasetRow, "art": ArtifactRow}
"""Where a thing is stored, by the prefix of its id."""
