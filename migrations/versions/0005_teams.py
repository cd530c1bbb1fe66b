"""Limits of projects, rotation of keys, who did what, and what is left of a project's requests."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

APPEND_ONLY = """
CREATE FUNCTION audit_log_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_log is append-only';
END $$;
CREATE TRIGGER audit_log_is_append_only BEFORE UPDATE OR DELETE ON audit_log
FOR EACH ROW EXECUTE FUNCTION audit_log_is_append_only();
"""


def upgrade() -> None:
    op.add_column("projects", sa.Column("max_queued_jobs", sa.Integer(), nullable=True))
    op.add_column("projects", sa.Column("max_stored_bytes", sa.BigInteger(), nullable=True))
    op.add_column("projects", sa.Column("requests_per_minute", sa.Integer(), nullable=True))
    op.add_column("projects", sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))
    op.drop_constraint(op.f("uq_projects_name"), "projects")
    op.create_index(
        "ix_projects_name", "projects", ["name"], unique=True, postgresql_where=sa.text("deleted_at IS NULL")
    )
    op.add_column("api_keys", sa.Column("previous_sha256", sa.LargeBinary(), nullable=True))
    op.add_column("api_keys", sa.Column("previous_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_keys", sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "audit_log",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("object_id", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column("details", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_audit_log_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_index("ix_audit_log_project_id_id", "audit_log", ["project_id", "id"], unique=False)
    op.create_index("ix_audit_log_object_id", "audit_log", ["object_id"], unique=False)
    op.execute(APPEND_ONLY)
    op.create_table(
        "request_buckets",
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("tokens", sa.Float(), nullable=False),
        sa.Column("filled_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_request_buckets")),
        prefixes=["UNLOGGED"],
    )


def downgrade() -> None:
    op.drop_table("request_buckets")
    op.drop_table("audit_log")
    op.execute("DROP FUNCTION audit_log_is_append_only()")
    op.drop_column("api_keys", "last_used_at")
    op.drop_column("api_keys", "previous_until")
    op.drop_column("api_keys", "previous_sha256")
    op.drop_index("ix_projects_name", table_name="projects", postgresql_where=sa.text("deleted_at IS NULL"))
    op.create_unique_constraint(op.f("uq_projects_name"), "projects", ["name"])
    op.drop_column("projects", "deleted_at")
    op.drop_column("projects", "requests_per_minute")
    op.drop_column("projects", "max_stored_bytes")
    op.drop_column("projects", "max_queued_jobs")
