"""What becomes of a job once its process has ended, or was ended."""

from signal import Signals

import structlog

from app import tracing
from app.artifacts.store import BlobStore
from app.jobs import completion, leases
from app.jobs.completion import Output
from app.jobs.leases import LeaseLostError
from app.jobs.problems import OUT_OF_MEMORY, child_died
from worker.checkpoints import has_checkpoints
from worker.lease import Lease
from worker.order import Outcome
from worker.time_limits import TimeLimit
from worker.watching import End
from worker.workspace import Workspace

log = structlog.get_logger(__name__)


class Settlement:
    """Of one attempt, by what its process left in its workspace."""

    def __init__(self, lease: Lease, workspace: Workspace, store: BlobStore) -> None:
        self._lease = lease
        self._workspace = workspace
        self._store = store

    def settle(self, end: End, exit_code: int, stage: str, limit: TimeLimit) -> bool:
        """Commit what became of the job, which was at `stage`; whether another attempt could go on from here.

        Raises:
            LeaseLostError: the job is no longer ours.
            DBAPIError: the database stays away.
        """
        resumable, held = True, self._lease.held
        match end:
            case End.LEASE_LOST:
                raise LeaseLostError(held.job_id)
            case End.CANCELLED:
                self._lease.commit(completion.cancel)
                resumable = False
            case End.DRAINING:
                self._lease.commit(leases.give_back, reason="worker_stopped", refund=True)
            case End.TIMED_OUT:
                resumable = has_checkpoints(self._workspace.checkpoints)
                self._lease.commit(completion.fail, limit.problem(held.kind, stage, resumable=resumable))
            case End.EXITED:
                outcome = self._workspace.read_outcome() if exit_code == 0 else None
                if outcome is None:
                    self._settle_death(exit_code)
                else:
                    self._settle_outcome(outcome)
                    resumable = outcome.error is not None and outcome.error.get("code") == OUT_OF_MEMORY
        tracing.annotate({"end": end.name.lower()})
        log.info("job.ended", end=end.name.lower())
        return resumable

    def _settle_outcome(self, outcome: Outcome) -> None:
        workspace = self._workspace
        self._lease.allow_for(sum(workspace.output(file.name).stat().st_size for file in outcome.outputs))
        outputs = [
            Output(file.name, file.media_type, self._store.put_file(workspace.output(file.name)), file.role, file.facts)
            for file in outcome.outputs
        ]
        error = outcome.error
        if error is None:
            self._lease.commit(completion.succeed, result=outcome.result, versions=outcome.versions, outputs=outputs)
            return
        tracing.annotate({}, error=str(error.get("code")))
        log.warning("job.failed", code=error.get("code"), detail=error.get("detail"), output=workspace.log_tail())
        self._lease.commit(completion.fail, error, outputs)

    def _settle_death(self, exit_code: int) -> None:
        held = self._lease.held
        killed = f"was killed by {Signals(-exit_code).name}" if exit_code < 0 else ""
        reason = killed or f"ended without an outcome (exit code {exit_code})"
        log.error("job.process_died", reason=reason, output=self._workspace.log_tail())
        if held.is_last_attempt:
            self._lease.commit(completion.fail, child_died(held.kind, reason, held.attempt))
        else:
            self._lease.commit(leases.give_back, reason="process_died", refund=False)
