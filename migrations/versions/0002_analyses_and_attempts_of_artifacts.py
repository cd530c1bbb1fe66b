"""Analyses by what they rest on; which attempt an artifact is from."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "analyses",
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_analyses_project_id_projects")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_analyses_job_id_jobs")),
        sa.PrimaryKeyConstraint("project_id", "key", name=op.f("pk_analyses")),
    )
    op.add_column("artifacts", sa.Column("fence", sa.Integer(), nullable=True))
    op.execute("UPDATE artifacts SET fence = jobs.fence FROM jobs WHERE jobs.id = artifacts.job_id")
    op.alter_column("artifacts", "fence", nullable=False)


def downgrade() -> None:
    op.drop_column("artifacts", "fence")
    op.drop_table("analyses")
