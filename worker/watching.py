"""Following a job's process until it ends, or has to end."""

import time
from enum import Enum, auto

import structlog
from sqlalchemy.exc import DBAPIError

from app.jobs.leases import LeaseLostError
from worker.child import Child
from worker.grace import Grace
from worker.lease import RETRY_S, Lease
from worker.progress import ProgressMeter

log = structlog.get_logger(__name__)


class End(Enum):
    """Why the supervisor stopped watching the process."""

    EXITED = auto()
    CANCELLED = auto()
    TIMED_OUT = auto()
    LEASE_LOST = auto()
    DRAINING = auto()


def watch(child: Child, lease: Lease, meter: ProgressMeter, grace: Grace, limit_s: float) -> End:
    """Renew the lease and pass progress on, for up to `limit_s`."""
    started = renewed = time.monotonic()
    while True:
        for message in child.messages(lease.heartbeat_s / 2):
            meter.update(message)
        now = time.monotonic()
        if child.exit_code() is not None:
            return End.EXITED
        if grace.is_over():
            return End.DRAINING
        if now - started > limit_s:
            return End.TIMED_OUT
        if now - renewed < lease.heartbeat_s:
            continue
        try:
            if lease.renew(meter.take_news()):
                return End.CANCELLED
        except LeaseLostError:
            return End.LEASE_LOST
        except DBAPIError as error:
            log.warning("job.heartbeat_failed", error=str(error))
            if now - renewed > lease.lease_s:
                return End.LEASE_LOST
            time.sleep(RETRY_S)
        else:
            renewed = now
