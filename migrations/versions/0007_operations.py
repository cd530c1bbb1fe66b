"""Workers that report, jobs that know the request they came from, and a count of every change of a job's status."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_ALIKE = ("queue", "kind", "before", "after", "reason", "code")
_BOUND = """
CREATE FUNCTION tally_bound(seconds double precision) RETURNS double precision IMMUTABLE LANGUAGE sql AS $$
    SELECT coalesce(min(bound), 'Infinity') FROM unnest(ARRAY[
        0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 43200, 86400
    ]::double precision[]) bound WHERE bound >= seconds
$$
"""
_COUNT = """
CREATE FUNCTION tally_job_transition() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    job jobs%ROWTYPE;
    earlier job_events%ROWTYPE;
    waited double precision;
BEGIN
    SELECT * INTO job FROM jobs WHERE id = NEW.job_id;
    SELECT * INTO earlier FROM job_events
        WHERE job_id = NEW.job_id AND type = 'status' AND seq < NEW.seq ORDER BY seq DESC LIMIT 1;
    waited := greatest(0, coalesce(extract(epoch FROM NEW.at - earlier.at), 0));
    INSERT INTO job_tally (queue, kind, before, after, reason, code, le, count, seconds) VALUES (
        job.queue,
        job.kind,
        coalesce(earlier.data ->> 'status', ''),
        NEW.data ->> 'status',
        split_part(coalesce(NEW.data ->> 'reason', ''), ':', 1),
        CASE WHEN NEW.data ->> 'status' = 'failed' THEN coalesce(job.error ->> 'code', 'unknown') ELSE '' END,
        tally_bound(waited),
        1,
        waited
    );
    RETURN NULL;
END $$
"""
_TRIGGER = """
CREATE TRIGGER tally_job_transition AFTER INSERT ON job_events
FOR EACH ROW WHEN (NEW.type = 'status') EXECUTE FUNCTION tally_job_transition()
"""
_FORMER = """
INSERT INTO job_tally (queue, kind, before, after, reason, code, le, count, seconds)
SELECT queue, kind, before, after, reason, code,
       tally_bound(waited), 1, waited
FROM (
    SELECT jobs.queue, jobs.kind,
           coalesce(lag(event.data ->> 'status') OVER story, '') AS before,
           event.data ->> 'status' AS after,
           split_part(coalesce(event.data ->> 'reason', ''), ':', 1) AS reason,
           CASE WHEN event.data ->> 'status' = 'failed' THEN coalesce(jobs.error ->> 'code', 'unknown') ELSE '' END
               AS code,
           greatest(0, coalesce(extract(epoch FROM event.at - lag(event.at) OVER story), 0)) AS waited
    FROM job_events event JOIN jobs ON jobs.id = event.job_id
    WHERE event.type = 'status'
    WINDOW story AS (PARTITION BY event.job_id ORDER BY event.seq)
) told
"""


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("queues", postgresql.ARRAY(sa.String()), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("gpus", postgresql.JSONB(), nullable=False),
        sa.Column("beat_s", sa.Float(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column(
            "started_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("last_seen", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.add_column("jobs", sa.Column("request_id", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("traceparent", sa.String(), nullable=True))
    op.add_column(
        "jobs",
        sa.Column(
            "waiting_since", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
    )
    op.execute("UPDATE jobs SET waiting_since = created_at")
    op.create_index(
        "ix_job_events_status",
        "job_events",
        ["job_id", "seq"],
        postgresql_where=sa.text("type = 'status'"),
        if_not_exists=True,
    )
    op.create_table(
        "job_tally",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in _ALIKE),
        sa.Column("le", sa.Float(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_tally")),
    )
    op.execute(_BOUND)
    op.execute(_FORMER)
    op.execute(_COUNT)
    op.execute(_TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER tally_job_transition ON job_events")
    op.execute("DROP FUNCTION tally_job_transition()")
    op.execute("DROP FUNCTION tally_bound(double precision)")
    op.drop_table("job_tally")
    op.drop_index("ix_job_events_status", "job_events", if_exists=True)
    for column in ("waiting_since", "traceparent", "request_id"):
        op.drop_column("jobs", column)
    op.drop_table("workers")
