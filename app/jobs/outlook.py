"""Where queued jobs stand, and when about they may start.

The answer comes from a picture of the queues that a process takes at most once a second, so that asking about a job
costs no query, however many jobs wait and however often clients ask.

A position assumes that nothing ends or arrives in the meantime: among equally urgent jobs, the n-th of a project with r
running ones comes in round r + n. It leaves out the limits of projects, of which other projects are told nothing.
"""

import statistics
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

from sqlalchemy import column, func, select, true, values
from sqlalchemy.orm import Session
from sqlalchemy.types import String

from app.db import Database
from app.jobs.fairness import LEVELS
from app.jobs.orm import JobRow
from app.jobs.status import JobStatus

RECENT = 50
"""The typical run time of a kind is the median of so many."""
_LOOK_AGAIN_S = 1.0
_SHARE_OF_TIME = 20
"""A picture that took long to take is kept for longer: this many times as long as it took."""


@dataclass(frozen=True)
class Place:
    """Of a queued job: 1 is next. `eta_s`: seconds until it starts, if that can be told."""

    position: int
    eta_s: float | None


@dataclass(frozen=True)
class Level:
    """The equally urgent jobs of a queue, at the moment when all that are more urgent have started."""

    more_urgent: int = 0
    running: Mapping[str, int] = field(default_factory=dict)
    """By project, those that were more urgent among them."""
    waiting: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By project: the ids of queued jobs, oldest first."""

    def ahead_of(self, job_id: str, project_id: str) -> int:
        """How many jobs of the queue start before this one."""
        own = bisect_left(self.waiting.get(project_id, ()), job_id)
        in_round = own + self.running.get(project_id, 0)
        ahead = self.more_urgent + own
        for other, ids in self.waiting.items():
            if other != project_id:
                before = in_round - self.running.get(other, 0)
                is_older = 0 <= before < len(ids) and ids[before] < job_id
                ahead += min(max(before, 0), len(ids)) + is_older
        return ahead


@dataclass(frozen=True)
class Picture:
    """The queues at one moment."""

    levels: Mapping[tuple[str, int], Level] = field(default_factory=dict)
    """By queue and priority."""
    workers: Mapping[str, int] = field(default_factory=dict)
    """By queue: how many jobs run."""
    typical_s: Mapping[str, float] = field(default_factory=dict)
    """By queue: how long a job runs, as far as the kinds that wait in it have run before."""

    def place_of(self, job: JobRow) -> Place:
        """Where the job, which is queued, stands."""
        position = self.levels.get((job.queue, job.priority), Level()).ahead_of(job.id, job.project_id) + 1
        typical_s, workers = self.typical_s.get(job.queue), self.workers.get(job.queue, 0)
        eta_s = None if typical_s is None or workers == 0 else round(position * typical_s / workers, 1)
        return Place(position, eta_s)


class Outlook:
    """Answers from a picture that is hardly older than a second."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = Lock()
        self._picture = Picture()
        self._good_until = 0.0

    def place_of(self, job: JobRow) -> Place | None:
        """Where the job stands; None if it is not queued."""
        return self._look().place_of(job) if job.status == JobStatus.QUEUED else None

    def _look(self) -> Picture:
        """While one takes a new picture, the others answer from the last one."""
        is_first = self._good_until == 0.0
        if time.monotonic() > self._good_until and self._lock.acquire(blocking=is_first):
            try:
                self._renew()
            finally:
                self._lock.release()
        return self._picture

    def _renew(self) -> None:
        started = time.monotonic()
        if started > self._good_until:
            with self._database.autocommit() as session:
                self._picture = take_picture(session)
            now = time.monotonic()
            self._good_until = now + max(_LOOK_AGAIN_S, _SHARE_OF_TIME * (now - started))


def take_picture(session: Session) -> Picture:
    """The queues as they are now."""
    columns = JobRow.queue, JobRow.project_id, JobRow.priority, JobRow.id, JobRow.kind
    queued = select(*columns).where(JobRow.status == JobStatus.QUEUED.value).order_by(*columns[:4])
    waiting: defaultdict[tuple[str, int], defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for queue, project_id, priority, job_id, kind in session.execute(queued):
        waiting[queue, priority][project_id].append(job_id)
        kinds[queue][kind] += 1
    count = select(JobRow.queue, JobRow.project_id, func.count()).where(JobRow.status == JobStatus.RUNNING.value)
    running: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for queue, project_id, number in session.execute(count.group_by(JobRow.queue, JobRow.project_id)):
        running[queue][project_id] = number
    workers = {queue: counted.total() for queue, counted in running.items()}
    levels: dict[tuple[str, int], Level] = {}
    for queue in kinds:
        by_priority = {priority: waiting[queue, priority] for priority in LEVELS.values()}
        levels |= {(queue, priority): level for priority, level in _levels(by_priority, running[queue]).items()}
    run_times = _run_times(session, set().union(*kinds.values()))
    typical_s = {}
    for queue, counted in kinds.items():
        known = {kind: number for kind, number in counted.items() if kind in run_times}
        if known:
            typical_s[queue] = sum(run_times[kind] * number for kind, number in known.items()) / sum(known.values())
    return Picture(levels, workers, typical_s)


def _levels(waiting: Mapping[int, Mapping[str, Sequence[str]]], running: Counter[str]) -> dict[int, Level]:
    """Of one queue, by priority."""
    levels, started = {}, running.copy()
    for priority in sorted(waiting, reverse=True):
        levels[priority] = Level(started.total() - running.total(), started.copy(), waiting[priority])
        started.update({project_id: len(ids) for project_id, ids in waiting[priority].items()})
    return levels


def _run_times(session: Session, kinds: set[str]) -> dict[str, float]:
    """The median run time, in seconds, of each kind's last successes that needed one attempt."""
    if not kinds:
        return {}
    asked = values(column("kind", String), name="asked").data([(kind,) for kind in sorted(kinds)])
    seconds = func.extract("epoch", JobRow.finished_at - JobRow.started_at).label("seconds")
    last = select(seconds).where(JobRow.status == JobStatus.SUCCEEDED.value, JobRow.kind == asked.c.kind)
    last = last.where(JobRow.attempt == 1).order_by(JobRow.finished_at.desc()).limit(RECENT)
    recent = last.correlate(asked).lateral("recent")
    found: defaultdict[str, list[float]] = defaultdict(list)
    for kind, took_s in session.execute(select(asked.c.kind, recent.c.seconds).join(recent, true())):
        found[kind].append(float(took_s))
    return {kind: statistics.median(times) for kind, times in found.items()}
