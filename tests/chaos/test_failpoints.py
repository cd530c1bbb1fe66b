"""A kill at every step of a job's life, and a stop at every step of a supervisor's."""

import os
import signal

import pytest
from sqlalchemy import text

from tests.chaos.conftest import Canonical, submit_inspections, submit_slices
from tests.chaos.deployment import Deployment, Keeper, until
from tests.chaos.failpoints import POINTS, REAPING, SUBMITTING, SUPERVISING, Armed
from tests.chaos.invariants import examine

IN_TRANSACTION = ("claiming", "committing")
"""Whoever is stopped here holds the job's row."""
OVER = ("committed", "cleaned")
"""Whoever is stopped here has nothing to lose any more."""


def test_every_process_is_killed_at_every_step_once(deployment: Deployment) -> None:
    """Whoever is first at a step dies there and is started again, until nobody dies any more."""
    points = {name: deployment.point(name) for name in POINTS}
    in_api = tuple(points[name] for name in SUBMITTING)
    in_worker = tuple(points[name] for name in (*SUPERVISING, *REAPING))
    starters = {"api": lambda: deployment.api(*in_api)}
    starters |= {f"worker {number}": lambda: deployment.worker(*in_worker) for number in range(3)}
    keys = [f"upload-{number}" for number in range(4)]
    with Keeper(starters):
        for key in keys:
            deployment.submit(key)
        until(lambda: not unreached(points), "every step is reached")
        verdict = examine(deployment, keys)
    assert verdict.ends == {"succeeded": len(keys)}
    killed = [process for process in deployment.processes if process.exitcode == -signal.SIGKILL]
    assert len(killed) == len(points)


def test_an_attempt_that_was_stopped_past_its_lease_changes_nothing_any_more(deployment: Deployment) -> None:
    """It wakes with its outputs in the store, and is about to commit."""
    assert_late_attempt_is_rejected(deployment, "stored", *submit_inspections(deployment, "late"))


@pytest.mark.chaos
@pytest.mark.parametrize("name", [name for name in SUPERVISING if name not in (*IN_TRANSACTION, *OVER)])
def test_stopped_past_the_lease_at(deployment: Deployment, canonical: Canonical, name: str) -> None:
    assert_late_attempt_is_rejected(deployment, name, *submit_slices(deployment, canonical, 1))


@pytest.mark.chaos
@pytest.mark.parametrize("name", IN_TRANSACTION)
def test_stopped_with_the_jobs_row_in_its_hands_at(deployment: Deployment, canonical: Canonical, name: str) -> None:
    """Nobody can take the job until Postgres ends the transaction that says nothing, after minutes: here at once."""
    (job_id,) = submit_slices(deployment, canonical, 1)
    stopped = deployment.point(name, "stop")
    late = deployment.worker(stopped)
    until(lambda: stopped.fired, "the first worker stops")
    deployment.worker()
    assert not deployment.has_ended(job_id)
    until(lambda: end_silent_transactions(deployment), "Postgres ends the transaction")
    until(lambda: deployment.has_ended(job_id), "the second worker finishes the job")
    assert late.pid is not None
    os.kill(late.pid, signal.SIGCONT)
    until(lambda: "terminating connection due to administrator command" in deployment.log, "the first has noticed")
    assert examine(deployment).ends == {"succeeded": 1}
    assert late.exitcode is None


@pytest.mark.chaos
@pytest.mark.parametrize("name", [*SUPERVISING, *REAPING])
def test_a_worker_is_killed_at(deployment: Deployment, canonical: Canonical, name: str) -> None:
    """The queue's message is still in the outbox when the worker starts."""
    point = deployment.point(name)
    job_ids = submit_slices(deployment, canonical, 2)
    with Keeper({"worker": lambda: deployment.worker(point)}):
        if name in REAPING:
            lose_a_worker(deployment)
        until(lambda: point.fired, f"{name} is reached")
        verdict = examine(deployment)
    assert verdict.ends == {"succeeded": len(job_ids)}


@pytest.mark.chaos
@pytest.mark.parametrize("name", list(SUBMITTING))
def test_the_api_is_killed_at(deployment: Deployment, name: str) -> None:
    point = deployment.point(name)
    with Keeper({"api": lambda: deployment.api(point), "worker": deployment.worker}):
        deployment.submit("upload")
        assert point.fired
        verdict = examine(deployment, ["upload"])
    assert verdict.ends == {"succeeded": 1}


@pytest.mark.chaos
def test_a_jobs_process_is_killed_as_soon_as_it_has_started(deployment: Deployment, canonical: Canonical) -> None:
    point = deployment.point("started", "kill_descendants")
    submit_slices(deployment, canonical, 1)
    deployment.worker(point)
    verdict = examine(deployment)
    assert point.fired
    assert (verdict.ends, verdict.attempts) == ({"succeeded": 1}, 2)


def end_silent_transactions(deployment: Deployment) -> bool:
    """As Postgres does after idle_in_transaction_session_timeout (app/db.py), but sooner; whether there were any."""
    silent = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
        AND state = 'idle in transaction' AND state_change < clock_timestamp() - interval '3 s'
    """
    with deployment.database.transaction() as session:
        return bool(session.execute(text(silent)).all())


def unreached(points: dict[str, Armed]) -> list[str]:
    return [name for name, point in points.items() if not point.fired]


def lose_a_worker(deployment: Deployment) -> None:
    """One dies with a claim, so that there is something to reap."""
    running = deployment.point("running")
    victim = deployment.worker(running)
    until(lambda: running.fired, "another worker dies with a job")
    victim.join()


def assert_late_attempt_is_rejected(deployment: Deployment, name: str, job_id: str) -> None:
    stopped = deployment.point(name, "stop")
    late = deployment.worker(stopped)
    until(lambda: stopped.fired, "the first worker stops")
    punctual = deployment.worker()
    until(lambda: deployment.has_ended(job_id), "the second worker finishes the job")
    assert late.pid is not None
    os.kill(late.pid, signal.SIGCONT)
    until(lambda: "job.lease_lost" in deployment.log, "the first is rejected")
    verdict = examine(deployment)
    assert verdict.ends == {"succeeded": 1}
    assert verdict.attempts >= 2
    assert (late.exitcode, punctual.exitcode) == (None, None)
    assert "dispatcher.failed" not in deployment.log
