"""One job from claim to end: take it in, carry it out in a process of its own, and see to whatever goes wrong."""

import math
import os
import time
from threading import Event
from typing import TypedDict

import structlog
from sqlalchemy.exc import DBAPIError

from app import tracing
from app.artifacts.store import BlobStore
from app.db import Database, JsonObject
from app.ids import new_id
from app.jobs import completion, leases, shards
from app.jobs.claims import Claim
from app.jobs.leases import LeaseLostError
from app.jobs.logs import keep_log
from app.jobs.problems import internal_error
from app.settings import Settings
from worker.attempt_log import read_bounded
from worker.child import Child, Launch
from worker.grace import Flag, Grace
from worker.identity import this_worker
from worker.inputs import Inputs, collect_inputs
from worker.lease import Lease
from worker.left_logs import keep_left_logs
from worker.order import LOG, Limits
from worker.progress import ProgressMeter
from worker.settling import Settlement
from worker.stages import read_stages
from worker.time_limits import TimeLimit, time_limit
from worker.watching import End, watch
from worker.workspace import Workspace, log_context

log = structlog.get_logger(__name__)


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
        settings = self._settings
        lease = Lease(self._database, held, lease_s=settings.lease_s, heartbeat_s=settings.heartbeat_s)
        with (
            structlog.contextvars.bound_contextvars(**about),
            tracing.span("job.run", held.origin.traceparent, kind="consumer", attributes=about),
        ):
            log.info("job.started")
            try:
                self._supervise(lease)
            except LeaseLostError:
                log.warning("job.lease_lost")
            except DBAPIError:
                log.exception("job.database_away")  # the lease runs out, and the reaper settles the job
                return False
            except OSError as error:
                log.exception("job.worker_fault")
                lease.commit_if_held(leases.give_back, reason=f"worker_fault: {error.strerror}", refund=True)
                return False
            except Exception as error:
                log.exception("job.supervision_failed")
                lease.commit_if_held(completion.fail, internal_error(error))
        return True

    def _supervise(self, lease: Lease) -> None:
        taken_in = self._take_in(lease)
        if taken_in is None:
            return
        inputs, limit = taken_in
        settings, held, resumable = self._settings, lease.held, True
        lease.commit(lambda session, _: keep_left_logs(session, [settings.work_dir / held.job_id]))
        workspace = Workspace.create(settings.work_dir, held, max_checkpoint_bytes=settings.job_checkpoint_bytes)
        try:
            lease.allow_for(sum(self._store.size_bytes(digest) for digest in inputs.files.values()))
            workspace.prepare(held, inputs, self._store, self._limits(limit))
            limit = self._time_limit(held)
            grace = Grace(self._draining, self._at_once, workspace.checkpoints, grace_s=settings.drain_grace_s)
            meter = ProgressMeter()
            child = Child.start(workspace.root, threads=settings.job_threads, launch=self._launch)
            try:
                end = watch(child, lease, meter, grace, limit.seconds)
                child.stop(0.0 if end is End.EXITED else settings.cancel_grace_s)
                for stage in read_stages(workspace.root, time.time_ns()):
                    tracing.record(stage.name, stage.began_ns, stage.ended_ns)
            finally:
                child.kill()
            lease.commit(keep_log, read_bounded(workspace.root / LOG))
            settlement = Settlement(lease, workspace, self._store)
            resumable = settlement.settle(end, child.exit_code() or 0, meter.stage, limit)
        finally:
            workspace.remove(keep_checkpoints=resumable)

    def _take_in(self, lease: Lease) -> tuple[Inputs, TimeLimit] | None:
        """What the job works on and for how long; None if it is too late, or if the job now waits for its shards."""
        held = lease.held
        with self._database.transaction() as session:
            limit = time_limit(session, held, self._settings)
            if limit.seconds <= 0:
                completion.fail(session, held, limit.problem(held.kind, "", resumable=False))
                return None
            is_shared = held.spec.get("shards", 1) != 1
            if not is_shared or not shards.split(session, held, max_attempts=self._settings.max_attempts):
                return collect_inputs(session, held), limit
        log.info("job.sharded")
        return None

    def _time_limit(self, held: Claim) -> TimeLimit:
        """What is left until a deadline now that the inputs have been copied."""
        with self._database.transaction() as session:
            return time_limit(session, held, self._settings)

    def _limits(self, limit: TimeLimit) -> Limits:
        settings = self._settings
        return Limits(
            memory_bytes=settings.job_memory_bytes,
            file_bytes=settings.job_file_bytes,
            threads=settings.job_threads,
            open_files=settings.job_open_files,
            cpu_s=math.ceil(limit.seconds * (os.cpu_count() or 1)) + 1,
            sandbox=settings.sandbox,
        )
