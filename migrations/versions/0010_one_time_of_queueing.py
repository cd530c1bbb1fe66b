"""When a job was last put into the queue is kept once: `queued_at`. No released version reads the other column."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.drop_column("jobs", "waiting_since")


def downgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "waiting_since", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
    )
    op.execute("UPDATE jobs SET waiting_since = queued_at")
