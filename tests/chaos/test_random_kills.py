"""Storms: whoever happens to be there is killed, again and again, while jobs come in."""

import os
import random
import secrets
import sys
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest

from app.jobs.service import JobService
from app.projects.keys import ensure_project
from tests.chaos.conftest import Canonical, submit_slices
from tests.chaos.deployment import Deployment, Keeper
from tests.chaos.invariants import examine

TARGETS = ("api", "worker", "worker", "job")
PAUSE_S = (0.02, 0.6)
PATIENCE_S = 4.0


def test_a_short_storm(deployment: Deployment) -> None:
    storm(deployment, jobs=8, kills=12, slices=[])


@pytest.mark.chaos
def test_two_hundred_kills_over_a_hundred_jobs(deployment: Deployment, canonical: Canonical) -> None:
    storm(deployment, jobs=90, kills=220, slices=submit_slices(deployment, canonical, 10))


@pytest.mark.chaos
def test_kills_over_workers_whose_jobs_are_forked_from_a_warm_process(
    deployment: Deployment, canonical: Canonical
) -> None:
    """That process is shot at as well."""
    deployment.extra["NEUSEMSLICE_WARM_START"] = "true"
    storm(deployment, jobs=10, kills=30, slices=submit_slices(deployment, canonical, 6))


def storm(deployment: Deployment, *, jobs: int, kills: int, slices: list[str]) -> None:
    """So many kills while so many uploads come in, beside `slices` that are queued; one of these is cancelled."""
    seed = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(10**9))
    sys.stdout.write(f"\nCHAOS_SEED={seed}\n")
    dice, started, killed = random.Random(seed), time.monotonic(), Counter[str]()
    keys = [f"storm-{number}" for number in range(jobs)]
    starters = {"api": deployment.api, "worker 1": deployment.worker, "worker 2": deployment.worker}
    answers: list[Future[str]] = []
    with ThreadPoolExecutor(4) as clients, Keeper(starters) as keeper:
        while killed.total() < kills:
            if len(answers) <= killed.total() * jobs // kills and len(answers) < jobs:
                answers.append(clients.submit(deployment.submit, keys[len(answers)]))
            await_work(deployment)
            time.sleep(dice.uniform(*PAUSE_S))
            killed.update(shoot(keeper, dice))
        if slices:
            cancel(deployment, dice.choice(slices))
        for answer in answers:
            answer.result()
        verdict = examine(deployment, keys)
    took_s = time.monotonic() - started
    sys.stdout.write(f"{killed.total()} kills ({dict(killed)}), {verdict}, {took_s:.0f} s\n")
    assert verdict.ends.total() == jobs + len(slices)
    assert verdict.ends["succeeded"] >= jobs
    assert verdict.ends["failed"] == 0


def await_work(deployment: Deployment) -> None:
    """Until a job is in work, so that kills do not only hit processes that are still starting; but not for long."""
    give_up = time.monotonic() + PATIENCE_S
    while not deployment.count("running") and time.monotonic() < give_up:
        time.sleep(0.02)


def shoot(keeper: Keeper, dice: random.Random) -> list[str]:
    """Kill one process, if one of the kind that was drawn is there; what it was."""
    target = dice.choice(TARGETS)
    names = sorted(name for name in keeper.current if name.startswith("api" if target == "api" else "worker"))
    process = keeper.current[dice.choice(names)]
    if process.exitcode is not None or process.pid is None:
        return []
    if target != "job":
        process.kill()
        return [target]
    with suppress(psutil.NoSuchProcess):
        descendants = sorted(psutil.Process(process.pid).children(recursive=True), key=lambda found: found.pid)
        if descendants:
            dice.choice(descendants).kill()
            return [target]
    return []


def cancel(deployment: Deployment, job_id: str) -> None:
    """As a client would."""
    with deployment.database.transaction() as session:
        JobService(session, ensure_project(session, "default"), max_attempts=1).cancel(job_id)
