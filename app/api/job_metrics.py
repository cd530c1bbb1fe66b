"""The service's figures as Prometheus reads them. Every API process shows the same: take one of them, never the sum."""

import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from threading import Lock

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from app.db import Database
from app.jobs.figures import Figures, read_figures
from app.jobs.specs import QUEUES
from app.jobs.status import JobStatus
from app.jobs.tally import BOUNDS_S
from app.jobs.workers import WorkerRow
from app.settings import Settings

log = structlog.get_logger(__name__)

KEPT_S = 2.0
"""Scrapes that come within this time see the same reading: the database is not asked by each."""
_ENDS = {status.value for status in JobStatus if status.is_terminal}


class JobMetrics(Collector):
    """Reads the tables when it is scraped; while they cannot be read, it says that alone."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._lock = Lock()
        self._read_at = float("-inf")
        self._figures: Figures | None = None

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        yield _gauge("build", "This version runs.", [({"version": version("neusemslice")}, 1)], suffix="_info")
        yield from self._store()
        figures = self._latest()
        yield _gauge("database_up", "Whether the database answers.", [({}, figures is not None)])
        if figures is not None:
            yield from _now(figures)
            yield from _gpus(figures.workers)
            yield from _since_ever(figures)

    def describe(self) -> Iterable[Metric]:
        """Nothing yet: the database is not asked before the first scrape."""
        return []

    def _latest(self) -> Figures | None:
        with self._lock:
            if time.monotonic() - self._read_at > KEPT_S:
                try:
                    with self._database.transaction() as session:
                        self._figures = read_figures(session)
                except SQLAlchemyError as error:
                    cause = error.orig if isinstance(error, DBAPIError) else error
                    log.warning("metrics.database_away", error=str(cause))
                    self._figures = None
                self._read_at = time.monotonic()
            return self._figures

    def _store(self) -> Iterator[Metric]:
        try:
            usage = shutil.disk_usage(self._settings.data_dir)
        except OSError as error:
            log.warning("metrics.store_away", error=str(error))
            return
        yield _gauge("store_free_bytes", "Left on the data folder's file system.", [({}, usage.free)])
        yield _gauge("store_size_bytes", "Size of the data folder's file system.", [({}, usage.total)])


def _now(figures: Figures) -> Iterator[Metric]:
    by_state = [
        ({"queue": queue, "kind": kind, "status": status}, count)
        for (queue, kind, status), count in figures.under_way.items()
    ]
    yield _gauge("jobs", "Jobs under way.", by_state, "queue", "kind", "status")
    waits = [({"queue": queue}, wait_s) for queue, wait_s in figures.oldest_wait_s.items()]
    yield _gauge("queue_oldest_wait_seconds", "How long the queue's oldest job waits.", waits, "queue")
    taking = [worker for worker in figures.workers if not worker.draining]
    workers = [({"queue": queue}, sum(one.slots for one in taking if queue in one.queues)) for queue in QUEUES]
    yield _gauge("workers", "Jobs of the queue that can run at once, on workers heard of lately.", workers, "queue")
    yield _gauge("leases_overdue", "Leases that ran out and wait for a reaper.", [({}, figures.overdue_leases)])
    yield _gauge("outbox_oldest_seconds", "Age of the oldest unannounced job.", [({}, figures.unannounced_s)])


def _gpus(workers: Iterable[WorkerRow]) -> Iterator[Metric]:
    """Each GPU once, however many workers see it."""
    seen = {(worker.host, gpu["uuid"]): gpu for worker in workers for gpu in worker.gpus}
    for name, field, help_text in (
        ("gpu_memory_used_bytes", "memory_used_bytes", "Memory in use, whoever uses it."),
        ("gpu_memory_total_bytes", "memory_total_bytes", "Memory of the GPU."),
        ("gpu_utilization_ratio", "utilization", "Share of the last moments in which the GPU worked, 0 to 1."),
    ):
        samples = [
            ({"host": host, "uuid": uuid, "model": gpu["name"]}, gpu[field])
            for (host, uuid), gpu in seen.items()
            if gpu[field] is not None
        ]
        if samples:
            yield _gauge(name, help_text, samples, "host", "uuid", "model")


def _since_ever(figures: Figures) -> Iterator[Metric]:
    counters = {
        name: CounterMetricFamily(f"neusemslice_{name}", help_text, labels=labels)
        for name, help_text, labels in (
            ("jobs_submitted", "Jobs that were taken in.", ("queue", "kind")),
            ("job_attempts", "Claims of jobs by supervisors.", ("queue", "kind")),
            ("jobs_ended", "Jobs that ended.", ("queue", "kind", "status")),
            ("job_failures", "Jobs that failed, by the code of their error.", ("queue", "kind", "code")),
            ("job_returns", "Attempts that ended with the job back in its queue.", ("queue", "kind", "reason")),
            ("job_retries", "Ended jobs that a client had run again.", ("queue", "kind")),
            ("leases_lost", "Jobs taken away from a supervisor that fell silent.", ("queue", "kind")),
        )
    }
    counts: defaultdict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
    waits, runs = _Histograms("job_wait_seconds"), _Histograms("job_run_seconds")
    for row in figures.tally:
        place, number = (row.queue, row.kind), float(row.number)
        match row.before, row.after:
            case "", _:
                counts["jobs_submitted", place] += number
            case _, "running":
                counts["job_attempts", place] += number
            case "running", "queued":
                counts["job_returns", (*place, row.reason)] += number
            case _, "queued":
                counts["job_retries", place] += number
        if row.before == "running" and (row.reason == "worker_lost" or row.after == "running"):
            counts["leases_lost", place] += number
        if row.after in _ENDS:
            counts["jobs_ended", (*place, row.after)] += number
        if row.after == JobStatus.FAILED:
            counts["job_failures", (*place, row.code)] += number
        if (row.before, row.after) == ("queued", "running"):
            waits.add(place, row.le, number, row.seconds)
        if row.before == "running" and row.after in _ENDS:
            runs.add((*place, row.after), row.le, number, row.seconds)
    for (name, labels), number in counts.items():
        counters[name].add_metric(labels, number)
    yield from counters.values()
    yield waits.family("From queued to claimed.", ("queue", "kind"))
    yield runs.family("Of the attempt that ended the job.", ("queue", "kind", "status"))


class _Histograms:
    """Buckets that were counted by Postgres, one histogram for each combination of labels."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._counts: defaultdict[tuple[str, ...], defaultdict[float, float]] = defaultdict(lambda: defaultdict(float))
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def add(self, labels: tuple[str, ...], le: float, number: float, seconds: float) -> None:
        self._counts[labels][le] += number
        self._sums[labels] += seconds

    def family(self, help_text: str, names: tuple[str, ...]) -> HistogramMetricFamily:
        family = HistogramMetricFamily(f"neusemslice_{self._name}", help_text, labels=names)
        for labels, counts in self._counts.items():
            bounds = [(bound, sum(n for le, n in counts.items() if le <= bound)) for bound in (*BOUNDS_S, float("inf"))]
            buckets = [("+Inf" if bound == float("inf") else str(bound), number) for bound, number in bounds]
            family.add_metric(labels, buckets, self._sums[labels])
        return family


def _gauge(
    name: str, help_text: str, samples: Iterable[tuple[dict[str, str], float]], *labels: str, suffix: str = ""
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"neusemslice_{name}{suffix}", help_text, labels=labels)
    for values, number in samples:
        family.add_sample(family.name, values, float(number))
    return family
