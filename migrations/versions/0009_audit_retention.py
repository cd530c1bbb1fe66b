"""Rows of the audit log may go once they are as old as whoever deletes them says."""

from collections.abc import Sequence

from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

FUNCTION = """
CREATE OR REPLACE FUNCTION audit_log_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    %s
    RAISE EXCEPTION 'audit_log is append-only';
END $$;
"""
UNLESS_OLD = """
    IF TG_OP = 'DELETE' AND OLD.created_at
        < clock_timestamp() - nullif(current_setting('neusemslice.audit_kept', true), '')::interval
    THEN
        RETURN OLD;
    END IF;
"""


def upgrade() -> None:
    op.execute(FUNCTION % UNLESS_OLD)


def downgrade() -> None:
    op.execute(FUNCTION % "")
