"""Tables of who may do what."""

from datetime import datetime

from sqlalchemy import ForeignKey, LargeBinary, String
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Timestamped


class ProjectRow(Timestamped, Base):
    """A project owns models, datasets and jobs; nobody else sees them."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    max_running_jobs: Mapped[int | None]
    """How many of its jobs may run at once, inspections aside. Without it, as many as there are workers."""


class ApiKeyRow(Timestamped, Base):
    """An API key; only a digest of its secret is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(String))
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
