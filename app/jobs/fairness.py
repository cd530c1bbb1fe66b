"""Whose turn it is: the more urgent job first; among equally urgent ones, projects take turns.

A project's turn comes the sooner the fewer of its jobs run in the queue; its own jobs go oldest first. Every step is a
probe of an index: the projects that wait are found by jumping from one to the next, so that a project with ten thousand
queued jobs costs as little as one with a single job.
"""

from collections.abc import Collection
from typing import Any

from sqlalchemy import ARRAY, ColumnElement, String, bindparam, func, null, select, text
from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import TextualSelect

from app.jobs.orm import JobRow
from app.jobs.specs import INSPECT, Priority
from app.jobs.status import JobStatus
from app.projects.orm import ProjectRow

LEVELS: dict[Priority, int] = {"high": 1, "normal": 0, "low": -1}
_WORDS = {level: word for word, level in LEVELS.items()}

_IN_TURN = """
WITH RECURSIVE waiting (project_id) AS (
    SELECT CAST('' AS varchar)
    UNION ALL
    SELECT (SELECT min(project_id) FROM jobs
            WHERE status = 'queued' AND queue = :queue AND project_id > waiting.project_id)
    FROM waiting WHERE waiting.project_id IS NOT NULL
)
SELECT taken.id
FROM (
    SELECT projects.id AS project_id, level.priority, running.count AS running, head.id
    FROM waiting
    JOIN projects ON projects.id = waiting.project_id AND projects.id <> ALL (:without)
    CROSS JOIN LATERAL (
        SELECT count(*) FROM jobs WHERE status = 'running' AND queue = :queue AND project_id = projects.id
    ) AS running
    CROSS JOIN (VALUES (1::smallint), (0::smallint), (-1::smallint)) AS level (priority)
    CROSS JOIN LATERAL (
        SELECT id FROM jobs
        WHERE status = 'queued' AND queue = :queue AND project_id = projects.id AND priority = level.priority
        ORDER BY id LIMIT 1
    ) AS head
    WHERE :unlimited OR projects.max_running_jobs IS NULL OR running.count < projects.max_running_jobs
    ORDER BY level.priority DESC, running.count, head.id
) AS turn
CROSS JOIN LATERAL (
    SELECT id FROM jobs
    WHERE status = 'queued' AND queue = :queue AND project_id = turn.project_id AND priority = turn.priority
    ORDER BY id LIMIT 1 {lock}
) AS taken
ORDER BY turn.priority DESC, turn.running, turn.id
LIMIT 1
"""


def priority_of(job: JobRow) -> Priority:
    """The word for the stored level."""
    return _WORDS[job.priority]


def next_in_turn(queue: str, *, without: Collection[str] = (), lock: bool = True) -> TextualSelect:
    """The id of the job of `queue` whose turn it is, passing over projects that are at their limit or in `without`.

    With `lock`, jobs that another transaction is claiming are passed over, and the one found is locked. Turns are
    sorted before any job is looked at, so that no other one gets locked.
    """
    query = text(_IN_TURN.format(lock="FOR UPDATE SKIP LOCKED" if lock else ""))
    return query.bindparams(
        bindparam("queue", queue),
        bindparam("without", list(without), ARRAY(String)),
        bindparam("unlimited", queue == INSPECT),
    ).columns(JobRow.id)


def limit_of(queue: str) -> ColumnElement[Any]:
    """How many jobs of a claimed job's project may run in `queue` at once. Inspections are short and never limited."""
    if queue == INSPECT:
        return null()
    return select(ProjectRow.max_running_jobs).where(ProjectRow.id == JobRow.project_id).scalar_subquery()


def exceeds_limit(session: Session, project_id: str, queue: str, limit: int) -> bool:
    """Whether the project, with the job that this transaction has just claimed, has more running jobs than it may.

    The claim saw how many ran when its statement began. Here claims of one project follow one another: each takes the
    project's lock and counts anew. If another claim has the lock, the answer is yes rather than a wait.
    """
    own = select(ProjectRow.id).where(ProjectRow.id == project_id)
    if session.scalar(own.with_for_update(key_share=True, skip_locked=True)) is None:
        return True
    running = JobRow.status == JobStatus.RUNNING.value, JobRow.queue == queue, JobRow.project_id == project_id
    return session.execute(select(func.count()).select_from(JobRow).where(*running)).scalar_one() > limit
