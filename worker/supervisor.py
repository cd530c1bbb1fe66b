"""One job from claim to commit: start its process, renew the lease, pass progress on, and settle the end."""

import math
import os
import time
from collections.abc import Callable
from enum import Enum, auto
from signal import Signals
from threading import Event
from typing import TypedDict

import structlog
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from app import tracing
from app.artifacts.store import BlobStore
from app.db import Database, JsonObject
from app.ids import new_id
from app.jobs import completion, leases, shard_progress, shards
from app.jobs.completion import Output
from app.jobs.leases import Claim, LeaseLostError
from app.jobs.logs import keep_log
from app.jobs.problems import OUT_OF_MEMORY, child_died, internal_error
from app.jobs.specs.sharding import SHARD
from app.settings import Settings
from worker.attempt_log import read_bounded
from worker.checkpoints import has_checkpoints
from worker.child import Child, Launch
from worker.grace import Flag, Grace
from worker.identity import this_worker
from worker.inputs import collect_inputs
from worker.left_logs import keep_left_logs
from worker.order import LOG, Limits, Outcome
from worker.progress import ProgressMeter
from worker.stages import read_stages
from worker.time_limits import TimeLimit, time_limit
from worker.workspace import Workspace, log_context

log = structlog.get_logger(__name__)

RETRY_S = 0.5
SLOWEST_COPY_BYTES_PER_S = 20_000_000


class End(Enum):
    """Why the supervisor stopped watching the process."""

    EXITED = auto()
    CANCELLED = auto()
    TIMED_OUT = auto()
    LEASE_LOST = auto()
    DRAINING = auto()


class Terms(TypedDict):
    """On what terms this supervisor claims jobs."""

    owner: str
    lease_s: float
    worker: JsonObject


class Supervisor:
    """Works on one job at a time in each thread that calls it."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: BlobStore,
        draining: Flag | None = None,
        launch: Launch | None = None,
        *,
        at_once: Flag | None = None,
    ) -> None:
        """`launch` makes the jobs' processes; without it each starts from scratch."""
        self._settings = settings
        self._database = database
        self._store = store
        self._terms = Terms(owner=new_id("own"), lease_s=settings.lease_s, worker=this_worker(settings.device))
        self._draining = draining or Event()
        self._launch = launch
        self._at_once = at_once or Event()

    @property
    def database(self) -> Database:
        """Where it claims jobs."""
        return self._database

    @property
    def owner(self) -> str:
        """What its leases are held under."""
        return self._terms["owner"]

    @property
    def draining(self) -> Flag:
        """Raised once it takes no more jobs."""
        return self._draining

    def run(self, job_id: str) -> bool:
        """Work on this job if it is free; False if it is not, or if this worker cannot work now."""
        with self._database.transaction() as session:
            held = leases.claim(session, job_id, **self._terms)
        return self._work_on(held)

    def run_next(self, queue: str) -> bool:
        """Work on the job of `queue` whose turn it is; False if there is none, or if this worker cannot work now."""
        with self._database.transaction() as session:
            held = leases.claim_next(session, queue, **self._terms)
        return self._work_on(held)

    def drain(self) -> None:
        """Let the running jobs end or reach a checkpoint for `drain_grace_s`, then give them back to the queue."""
        self._draining.set()

    def _work_on(self, held: Claim | None) -> bool:
        if held is None:
            return False
        about = log_context(held)
        with (
            structlog.contextvars.bound_contextvars(**about),
            tracing.span("job.run", held.origin.traceparent, kind="consumer", attributes=about),
        ):
            log.info("job.started")
            try:
                self._supervise(held)
            except LeaseLostError:
                log.warning("job.lease_lost")
            except DBAPIError:
                log.exception("job.database_away")  # the lease runs out, and the reaper settles the job
                return False
            except OSError as error:
                log.exception("job.worker_fault")
                reason = f"worker_fault: {error.strerror}"
                self._commit_if_held(lambda session: leases.give_back(session, held, reason=reason, refund=True))
                return False
            except Exception as error:
                log.exception("job.supervision_failed")
                failure = internal_error(error)
                self._commit_if_held(lambda session: completion.fail(session, held, failure))
        return True

    def _supervise(self, held: Claim) -> None:
        if held.spec.get("shards", 1) != 1 and self._split(held):
            return
        settings, resumable = self._settings, True
        self._commit(lambda session: keep_left_logs(session, [settings.work_dir / held.job_id]))
        workspace = Workspace.create(settings.work_dir, held, max_checkpoint_bytes=settings.job_checkpoint_bytes)
        try:
            with self._database.transaction() as session:
                inputs = collect_inputs(session, held)
                limit = time_limit(session, held, settings)
            if limit.seconds <= 0:
                overdue = limit.problem(held.kind, "", resumable=False)
                self._commit(lambda session: completion.fail(session, held, overdue))
                return
            limits = Limits(
                memory_bytes=settings.job_memory_bytes,
                file_bytes=settings.job_file_bytes,
                threads=settings.job_threads,
                open_files=settings.job_open_files,
                cpu_s=math.ceil(limit.seconds * (os.cpu_count() or 1)) + 1,
                sandbox=settings.sandbox,
            )
            self._allow_for(held, sum(self._store.size_bytes(digest) for digest in inputs.files.values()))
            workspace.prepare(held, inputs, self._store, limits)
            grace = Grace(self._draining, self._at_once, workspace.checkpoints, grace_s=settings.drain_grace_s)
            meter = ProgressMeter()
            child = Child.start(workspace.root, threads=settings.job_threads, launch=self._launch)
            try:
                end = self._watch(child, held, meter, grace, limit.seconds)
                child.stop(0.0 if end is End.EXITED else settings.cancel_grace_s)
                for stage in read_stages(workspace.root, time.time_ns()):
                    tracing.record(stage.name, stage.began_ns, stage.ended_ns)
            finally:
                child.kill()
            printed = read_bounded(workspace.root / LOG)
            self._commit(lambda session: keep_log(session, held, printed))
            resumable = self._settle(held, end, child, workspace, meter.stage, limit)
        finally:
            workspace.remove(keep_checkpoints=resumable)

    def _split(self, held: Claim) -> bool:
        """Whether the job now waits for shards of its analysis."""
        with self._database.transaction() as session:
            waits = shards.split(session, held, max_attempts=self._settings.max_attempts)
        if waits:
            log.info("job.sharded")
        return waits

    def _watch(self, child: Child, held: Claim, meter: ProgressMeter, grace: Grace, limit_s: float) -> End:
        """Follow the process until it ends or has to end."""
        settings = self._settings
        started = renewed = time.monotonic()
        while True:
            for message in child.messages(settings.heartbeat_s / 2):
                meter.update(message)
            now = time.monotonic()
            if child.exit_code() is not None:
                return End.EXITED
            if grace.is_over():
                return End.DRAINING
            if now - started > limit_s:
                return End.TIMED_OUT
            if now - renewed < settings.heartbeat_s:
                continue
            try:
                news = meter.take_news()
                with self._database.transaction() as session:
                    if leases.renew(session, held, lease_s=settings.lease_s, progress=news):
                        return End.CANCELLED
                if news is not None and held.kind == SHARD:
                    with self._database.transaction() as session:
                        shard_progress.pass_on(session, held)
            except LeaseLostError:
                return End.LEASE_LOST
            except DBAPIError as error:
                log.warning("job.heartbeat_failed", error=str(error))
                if now - renewed > settings.lease_s:
                    return End.LEASE_LOST
                time.sleep(RETRY_S)
            else:
                renewed = now

    def _settle(self, held: Claim, end: End, child: Child, workspace: Workspace, stage: str, limit: TimeLimit) -> bool:
        """Commit what became of the job, which was at `stage`; whether another attempt could go on from here."""
        resumable = True
        match end:
            case End.LEASE_LOST:
                raise LeaseLostError(held.job_id)
            case End.CANCELLED:
                self._commit(lambda session: completion.cancel(session, held))
                resumable = False
            case End.DRAINING:
                self._commit(lambda session: leases.give_back(session, held, reason="worker_stopped", refund=True))
            case End.TIMED_OUT:
                resumable = has_checkpoints(workspace.checkpoints)
                error = limit.problem(held.kind, stage, resumable=resumable)
                self._commit(lambda session: completion.fail(session, held, error))
            case End.EXITED:
                outcome = workspace.read_outcome() if child.exit_code() == 0 else None
                if outcome is None:
                    self._settle_death(held, child.exit_code() or 0, workspace)
                else:
                    self._settle_outcome(held, outcome, workspace)
                    resumable = outcome.error is not None and outcome.error.get("code") == OUT_OF_MEMORY
        tracing.annotate({"end": end.name.lower()})
        log.info("job.ended", end=end.name.lower())
        return resumable

    def _settle_outcome(self, held: Claim, outcome: Outcome, workspace: Workspace) -> None:
        self._allow_for(held, sum(workspace.output(file.name).stat().st_size for file in outcome.outputs))
        outputs = [
            Output(file.name, file.media_type, self._store.put_file(workspace.output(file.name)), file.role, file.facts)
            for file in outcome.outputs
        ]
        if outcome.error is not None:
            error = outcome.error
            tracing.annotate({}, error=str(error.get("code")))
            log.warning("job.failed", code=error.get("code"), detail=error.get("detail"), output=workspace.log_tail())
            self._commit(lambda session: completion.fail(session, held, error, outputs))
            return
        self._commit(
            lambda session: completion.succeed(
                session, held, result=outcome.result, versions=outcome.versions, outputs=outputs
            )
        )

    def _settle_death(self, held: Claim, code: int, workspace: Workspace) -> None:
        reason = f"was killed by {Signals(-code).name}" if code < 0 else f"ended without an outcome (exit code {code})"
        log.error("job.process_died", reason=reason, output=workspace.log_tail())
        if held.is_last_attempt:
            self._commit(lambda session: completion.fail(session, held, child_died(held.kind, reason, held.attempt)))
        else:
            self._commit(lambda session: leases.give_back(session, held, reason="process_died", refund=False))

    def _allow_for(self, held: Claim, size_bytes: int) -> None:
        """Prolong the lease by the time that copying so much may take, if that is long: no heartbeat goes out then."""
        if size_bytes < SLOWEST_COPY_BYTES_PER_S * self._settings.heartbeat_s:
            return
        lease_s = self._settings.lease_s + size_bytes / SLOWEST_COPY_BYTES_PER_S

        def prolong(session: Session) -> None:
            leases.renew(session, held, lease_s=lease_s)

        self._commit(prolong)

    def _commit_if_held(self, write: Callable[[Session], None]) -> None:
        """Settle a fault, which may come of a lost lease: whoever has the job now has removed our folder."""
        try:
            self._commit(write)
        except LeaseLostError:
            log.warning("job.lease_lost")
        except DBAPIError:
            log.exception("job.database_away")

    def _commit(self, write: Callable[[Session], object]) -> None:
        """Write what must not get lost, trying again while the database is away and the lease may still be ours."""
        give_up = time.monotonic() + self._settings.lease_s
        while True:
            try:
                with self._database.transaction() as session:
                    write(session)
            except DBAPIError as error:
                is_away = error.connection_invalidated or isinstance(error, OperationalError)
                if not is_away or time.monotonic() > give_up:
                    raise
                log.warning("job.commit_failed", error=str(error))
                time.sleep(RETRY_S)
            else:
                return
