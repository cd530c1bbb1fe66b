"""The lease on a claimed job in its supervisor's hands: prolonging it, and writing under it what must not get lost."""

import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import structlog
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from app.db import Database, JsonObject
from app.jobs import leases, shard_progress
from app.jobs.claims import Claim
from app.jobs.leases import LeaseLostError
from app.jobs.specs.sharding import SHARD

log = structlog.get_logger(__name__)

RETRY_S = 0.5
SLOWEST_COPY_BYTES_PER_S = 20_000_000

P = ParamSpec("P")
Write = Callable[Concatenate[Session, Claim, P], object]
"""Changes something about a claimed job, in a transaction of its caller's."""


class Lease:
    """Of one attempt. Whatever is written is rejected once another one has the job."""

    def __init__(self, database: Database, held: Claim, *, lease_s: float, heartbeat_s: float) -> None:
        self._database = database
        self.held = held
        self.lease_s = lease_s
        self.heartbeat_s = heartbeat_s

    def renew(self, progress: JsonObject | None) -> bool:
        """Prolong it once and show `progress`; whether the job is to be cancelled.

        Raises:
            LeaseLostError: the job is no longer ours.
            DBAPIError: the database is away.
        """
        with self._database.transaction() as session:
            if leases.renew(session, self.held, lease_s=self.lease_s, progress=progress):
                return True
        if progress is not None and self.held.kind == SHARD:
            with self._database.transaction() as session:
                shard_progress.pass_on(session, self.held)
        return False

    def allow_for(self, size_bytes: int) -> None:
        """Prolong it by the time that copying so much may take, if that is long: no heartbeat goes out then.

        Raises:
            LeaseLostError: the job is no longer ours.
            DBAPIError: the database stays away.
        """
        if size_bytes >= SLOWEST_COPY_BYTES_PER_S * self.heartbeat_s:
            self.commit(leases.renew, lease_s=self.lease_s + size_bytes / SLOWEST_COPY_BYTES_PER_S)

    def commit(self, write: Write[P], *values: P.args, **named: P.kwargs) -> None:
        """Write what must not get lost, trying again while the database is away and the lease may still be ours.

        Raises:
            LeaseLostError: the job is no longer ours.
            DBAPIError: the database stays away.
        """
        give_up = time.monotonic() + self.lease_s
        while True:
            try:
                with self._database.transaction() as session:
                    write(session, self.held, *values, **named)
            except DBAPIError as error:
                is_away = error.connection_invalidated or isinstance(error, OperationalError)
                if not is_away or time.monotonic() > give_up:
                    raise
                log.warning("job.commit_failed", error=str(error))
                time.sleep(RETRY_S)
            else:
                return

    def commit_if_held(self, write: Write[P], *values: P.args, **named: P.kwargs) -> None:
        """Settle a fault, which may come of a lost lease: whoever has the job now has removed our folder."""
        try:
            self.commit(write, *values, **named)
        except LeaseLostError:
            log.warning("job.lease_lost")
        except DBAPIError:
            log.exception("job.database_away")
