"""Jobs that are shards of another job's analysis."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

IS_SHARD = sa.text("parent_job_id IS NOT NULL")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("parent_job_id", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("shard_index", sa.SmallInteger(), nullable=True))
    op.create_foreign_key(op.f("fk_jobs_parent_job_id_jobs"), "jobs", "jobs", ["parent_job_id"], ["id"])
    op.create_index("uq_jobs_shard", "jobs", ["parent_job_id", "shard_index"], unique=True, postgresql_where=IS_SHARD)


def downgrade() -> None:
    op.drop_index("uq_jobs_shard", table_name="jobs", postgresql_where=IS_SHARD)
    op.drop_constraint(op.f("fk_jobs_parent_job_id_jobs"), "jobs", type_="foreignkey")
    op.drop_column("jobs", "shard_index")
    op.drop_column("jobs", "parent_job_id")
