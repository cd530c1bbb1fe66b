"""Tables of thousands of rows, of which a project has a small share, and what Postgres plans to do with them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event, text

from app.db import Database
from app.jobs.specs import JOB_KINDS

TABLES = (
    *("jobs", "job_events", "attempt_logs", "outbox", "artifacts", "models", "datasets"),
    *("api_keys", "audit_log", "webhooks", "webhook_deliveries"),
)
ROWS = 6000
PROJECTS = 30
PROJECT, JOB = "prj_3", f"job_{3:026}"
WEBHOOK = f"whk_{JOB}"


def fill(database: Database) -> None:
    """Projects with thousands of jobs: most queued or ended, a few running, some abandoned; and as much of the rest."""
    columns = "id, project_id, kind, queue, spec, metadata, status, attempt, attempt_limit, fence, cancel_requested"
    with database.engine.begin() as connection:
        for statement in (
            f"INSERT INTO projects (id, name) SELECT 'prj_' || i, 'p' || i FROM generate_series(0, {PROJECTS - 1}) i",
            f"""INSERT INTO jobs ({columns}, event_count, priority, lease_until, started_at, finished_at, queued_at,
                    created_at)
                SELECT 'job_' || lpad(i::text, 26, '0'), 'prj_' || i % {PROJECTS},
                    CASE WHEN i % 10 = 0 THEN 'inspect_model' ELSE (ARRAY{list(JOB_KINDS)})[1 + i % 5] END,
                    CASE WHEN i % 10 = 0 THEN 'inspect' ELSE 'compute' END,
                    jsonb_build_object('model_id', 'mdl_' || i % 500), jsonb_build_object('run', (i % 300)::text),
                    CASE WHEN i % 100 = 0 THEN 'running' WHEN i % 2 = 0 THEN 'queued' WHEN i % 3 = 0 THEN 'failed'
                        ELSE 'succeeded' END,
                    1, 3, 1, false, 2, i % 3 - 1, now() - interval '1 hour', now() - interval '1 hour',
                    CASE WHEN i % 2 = 1 THEN now() END, now() - interval '1 hour',
                    now() - interval '1 minute' * ({ROWS} - i)
                FROM generate_series(1, {ROWS}) i""",
            """INSERT INTO job_events (job_id, seq, type, data)
                SELECT id, seq, CASE WHEN seq = 2 THEN 'progress' ELSE 'status' END, '{"status": "queued"}' FROM jobs,
                generate_series(1, 2) seq""",
            "INSERT INTO outbox (job_id, queue) SELECT id, queue FROM jobs",
            """INSERT INTO artifacts (id, project_id, job_id, fence, name, media_type, digest, size_bytes)
                SELECT 'art_' || id, project_id, id, 1, 'x', 'x', 'x', 1 FROM jobs""",
            "INSERT INTO attempt_logs (job_id, fence, attempt, content) SELECT id, 1, 1, 'x' FROM jobs",
            *(
                f"""INSERT INTO {table} (id, project_id, name, status, spec, source_digest, size_bytes, metadata)
                    SELECT '{prefix}_' || id, project_id, 'x', 'ready', '{{}}', id, 1, '{{}}' FROM jobs"""
                for table, prefix in (("models", "mdl"), ("datasets", "ds"))
            ),
            "UPDATE models SET produced_by_job_id = substr(id, 5)",
            """INSERT INTO api_keys (id, project_id, name, secret_sha256, scopes)
                SELECT id, project_id, 'x', 'x', '{}' FROM jobs""",
            """INSERT INTO audit_log (id, project_id, actor, action, object_id, details)
                SELECT 'aud_' || id, project_id, 'key:' || project_id, 'job.create', id, '{}' FROM jobs""",
            """INSERT INTO webhooks (id, project_id, url, events, secret, failures)
                SELECT 'whk_' || id, project_id, 'x', '{job.queued}', 'x', 0 FROM jobs""",
            """INSERT INTO webhook_deliveries (webhook_id, event_id, event_type, subject_id, body, status, tries,
                    tries_limit, log)
                SELECT 'whk_job_' || lpad(substr(project_id, 5), 26, '0'), 'evt_' || id, 'job.queued', id, '{}',
                    'delivered', 1, 10, '[]'
                FROM jobs WHERE project_id <> 'prj_0'""",
        ):
            connection.execute(text(statement))
        connection.execute(text("ANALYZE"))


@contextmanager
def explained(database: Database) -> Iterator[list[str]]:
    """The plans of all statements on the tables that run in the block; what they did is to be rolled back."""
    plans: list[str] = []

    def explain(connection, cursor, statement: str, parameters, context, executemany: bool) -> None:
        if not executemany and any(re.search(rf"\b{table}\b", statement) for table in TABLES):
            with cursor.connection.cursor() as other:
                other.execute(f"EXPLAIN {statement}", parameters)
                plans.append(f"{statement}\n" + "\n".join(line for (line,) in other.fetchall()))

    event.listen(database.engine, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        event.remove(database.engine, "before_cursor_execute", explain)


def check(plans: list[str]) -> None:
    assert plans != []
    for plan in plans:
        assert not re.search(rf"Seq Scan on ({'|'.join(TABLES)})\b", plan), plan
        assert "Index" in plan or "Insert on" in plan, plan
