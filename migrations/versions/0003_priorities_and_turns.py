"""Priorities and quotas of running jobs, and indexes for claiming by turns and for lists by filter."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

QUEUED, RUNNING, SUCCEEDED = (sa.text(f"status = '{status}'") for status in ("queued", "running", "succeeded"))


def upgrade() -> None:
    op.add_column("projects", sa.Column("max_running_jobs", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False))
    op.drop_index("ix_jobs_queued", table_name="jobs")
    op.drop_index("ix_jobs_running", table_name="jobs")
    op.create_index(
        "ix_jobs_queued",
        "jobs",
        ["queue", "project_id", "priority", "id"],
        postgresql_where=QUEUED,
        postgresql_include=["kind"],
    )
    op.create_index("ix_jobs_running", "jobs", ["queue", "project_id"], postgresql_where=RUNNING)
    op.create_index("ix_jobs_succeeded", "jobs", ["kind", "finished_at"], postgresql_where=SUCCEEDED)
    op.create_index("ix_jobs_project_id_status_id", "jobs", ["project_id", "status", "id"])
    op.create_index("ix_jobs_project_id_kind_id", "jobs", ["project_id", "kind", "id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_project_id_kind_id", table_name="jobs")
    op.drop_index("ix_jobs_project_id_status_id", table_name="jobs")
    op.drop_index("ix_jobs_succeeded", table_name="jobs")
    op.drop_index("ix_jobs_running", table_name="jobs")
    op.drop_index("ix_jobs_queued", table_name="jobs")
    op.create_index("ix_jobs_queued", "jobs", ["queue", "id"], postgresql_where=QUEUED)
    op.create_index("ix_jobs_running", "jobs", ["lease_until"], postgresql_where=RUNNING)
    op.drop_column("jobs", "priority")
    op.drop_column("projects", "max_running_jobs")
