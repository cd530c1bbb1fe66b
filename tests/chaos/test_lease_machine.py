"""Any order of claims, heartbeats, ends, cancels, retries, expiries and reaps, against a model that fits on a page."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, select, update

from app.artifacts.catalog import Catalog, NewAsset, accept
from app.artifacts.orm import DatasetRow, ModelRow
from app.artifacts.store import Blob
from app.db import Database
from app.errors import ConflictError
from app.jobs import completion, leases
from app.jobs.completion import Output
from app.jobs.leases import Claim, LeaseLostError
from app.jobs.orm import JobEventRow, JobRow, OutboxRow
from app.jobs.queue import relay_outbox
from app.jobs.reaper import reap
from app.jobs.service import JobService
from app.jobs.specs import SliceSpec
from app.projects.keys import ensure_project

LEASE_S = 3600.0
OWNERS = st.sampled_from(["first", "second", "third"])
ENDED = ("succeeded", "failed", "cancelled")


@dataclass
class Model:
    """A job, as it should be."""

    limit: int
    status: str = "queued"
    attempt: int = 0
    fence: int = 0
    cancel_requested: bool = False
    has_expired: bool = False
    result_of: int | None = None
    """The fence of the attempt whose result and artifacts are to be seen."""
    announced: bool = False
    """Since it was last queued."""
    statuses: list[str] = field(default_factory=lambda: ["queued"])

    def is_held_by(self, held: Claim) -> bool:
        return self.status == "running" and self.fence == held.fence

    def become(self, status: str) -> None:
        self.status, self.has_expired = status, False
        self.statuses.append(status)
        if status == "queued":
            self.announced = False

    def take(self) -> None:
        self.attempt += 1
        self.fence += 1
        self.become("running")


class Announced:
    """A queue that remembers what it was told."""

    def __init__(self, models: dict[str, Model]) -> None:
        self._models = models

    def publish(self, job_id: str, queue: str) -> None:
        if job_id in self._models:
            self._models[job_id].announced = True

    def is_available(self) -> bool:
        return True

    def has_backlog(self, queue: str) -> bool:
        return False


class LeaseMachine(RuleBasedStateMachine):
    """Every rule does one thing to the service and to the model, and compares what they say."""

    database: ClassVar[Database]
    project: ClassVar[str]
    spec: ClassVar[SliceSpec]
    steps: ClassVar[list[int]]

    jobs = Bundle("jobs")
    claims = Bundle("claims")

    @initialize()
    def begin(self) -> None:
        self.models: dict[str, Model] = {}
        with self.database.transaction() as session:
            session.execute(update(JobRow).values(status="cancelled"))
            session.execute(delete(OutboxRow))

    @rule(target=jobs, limit=st.integers(1, 3))
    def submit(self, limit: int) -> str:
        with self.database.transaction() as session:
            job_id = JobService(session, self.project, max_attempts=limit).submit(self.spec).id
        self.models[job_id] = Model(limit)
        return job_id

    @rule(target=claims, owner=OWNERS)
    def claim(self, owner: str):
        with self.database.transaction() as session:
            held = leases.claim_next(session, "compute", owner=owner, lease_s=LEASE_S)
        queued = {job_id for job_id, model in self.models.items() if model.status == "queued"}
        assert (held is not None) == bool(queued)
        assert held is None or held.job_id in queued
        return self._taken(held)

    def _taken(self, held: Claim | None):
        if held is None:
            return multiple()
        model = self.models[held.job_id]
        model.take()
        assert (held.fence, held.attempt) == (model.fence, model.attempt)
        assert held.is_last_attempt == (model.attempt >= model.limit)
        return held

    @rule(held=claims, done=st.integers(0, 3))
    def heartbeat(self, held: Claim, done: int) -> None:
        answers: list[bool] = []
        progress = {"stage": "s", "done": done} if done else None
        model = self.models[held.job_id]
        if self._try(
            held, lambda session: answers.append(leases.renew(session, held, lease_s=LEASE_S, progress=progress))
        ):
            model.has_expired = False
            assert answers == [model.cancel_requested]

    @rule(held=claims)
    def succeed(self, held: Claim) -> None:
        self._end(
            held,
            "succeeded",
            lambda session: completion.succeed(
                session, held, result={"fence": held.fence}, versions={}, outputs=[output_of(held)]
            ),
        )

    @rule(held=claims)
    def fail(self, held: Claim) -> None:
        self._end(
            held, "failed", lambda session: completion.fail(session, held, {"fence": held.fence}, [output_of(held)])
        )

    @rule(held=claims)
    def end_as_cancelled(self, held: Claim) -> None:
        self._end(held, "cancelled", lambda session: completion.cancel(session, held))

    @rule(held=claims, refund=st.booleans())
    def give_back(self, held: Claim, refund: bool) -> None:
        model = self.models[held.job_id]
        ours = self._try(held, lambda session: leases.give_back(session, held, reason="test", refund=refund))
        if ours and model.cancel_requested:
            model.become("cancelled")
        elif ours:
            model.attempt -= refund
            model.become("queued")

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        with self.database.transaction() as session:
            JobService(session, self.project, max_attempts=1).cancel(job_id)
        model = self.models[job_id]
        if model.status == "queued":
            model.become("cancelled")
        elif model.status == "running":
            model.cancel_requested = True

    @rule(job_id=jobs, attempts=st.integers(1, 3))
    def retry(self, job_id: str, attempts: int) -> None:
        model = self.models[job_id]
        try:
            with self.database.transaction() as session:
                JobService(session, self.project, max_attempts=attempts).retry(job_id)
        except ConflictError:
            assert model.status not in ("failed", "cancelled")
            return
        assert model.status in ("failed", "cancelled")
        model.cancel_requested, model.limit, model.result_of = False, model.attempt + attempts, None
        model.become("queued")

    @rule(job_id=jobs)
    def lease_runs_out(self, job_id: str) -> None:
        with self.database.transaction() as session:
            held = (JobRow.id == job_id) & (JobRow.status == "running")
            session.execute(update(JobRow).where(held).values(lease_until=JobRow.created_at))
        self.models[job_id].has_expired = self.models[job_id].status == "running"

    @rule()
    def reap(self) -> None:
        expired = [model for model in self.models.values() if model.has_expired]
        assert reap(self.database) == len(expired)
        for model in expired:
            exhausted = "failed" if model.attempt >= model.limit else "queued"
            model.become("cancelled" if model.cancel_requested else exhausted)

    @rule()
    def relay(self) -> None:
        relay_outbox(self.database, Announced(self.models))

    @invariant()
    def the_tables_say_what_the_model_says(self) -> None:
        self.steps.append(len(self.models))
        with self.database.transaction() as session:
            rows = session.scalars(select(JobRow).where(JobRow.id.in_(self.models))).all()
            waiting = set(session.scalars(select(OutboxRow.job_id)))
            events = session.scalars(
                select(JobEventRow).where(JobEventRow.job_id.in_(self.models)).order_by(JobEventRow.seq)
            ).all()
            seen = JobService(session, self.project, max_attempts=1).artifacts_of(rows)
        assert len(rows) == len(self.models)
        for row in rows:
            model = self.models[row.id]
            assert (row.status, row.attempt, row.fence) == (model.status, model.attempt, model.fence)
            assert (row.attempt_limit, row.cancel_requested) == (model.limit, model.cancel_requested)
            assert (row.lease_owner is None) == (row.lease_until is None) == (row.status != "running")
            assert (row.finished_at is not None) == (row.status in ENDED)
            assert row.status != "queued" or model.announced or row.id in waiting
            story = [event for event in events if event.job_id == row.id]
            assert [event.seq for event in story] == list(range(1, row.event_count + 1))
            assert [event.data["status"] for event in story if event.type == "status"] == model.statuses
            visible = [artifact.fence for artifact in seen if artifact.job_id == row.id]
            assert visible == ([] if model.result_of is None else [model.result_of])
            if model.result_of is not None:
                assert (row.result if row.status == "succeeded" else row.error) == {"fence": model.result_of}

    def _end(self, held: Claim, status: str, write: Callable) -> None:
        if self._try(held, write):
            model = self.models[held.job_id]
            model.become(status)
            model.result_of = None if status == "cancelled" else held.fence

    def _try(self, held: Claim, write: Callable) -> bool:
        """Write as a lease holder; whether it counted, which is as the model has it."""
        try:
            with self.database.transaction() as session:
                write(session)
        except LeaseLostError:
            assert not self.models[held.job_id].is_held_by(held)
            return False
        assert self.models[held.job_id].is_held_by(held)
        return True


def output_of(held: Claim) -> Output:
    """An artifact that tells which attempt it is of."""
    return Output("report.json", "application/json", Blob(f"{held.fence:064x}", 1))


@pytest.fixture
def machine(database: Database) -> type[LeaseMachine]:
    """The machine on a database of its own, with a ready model and dataset in it."""
    with database.transaction() as session:
        project = ensure_project(session, "default")
        catalog = Catalog(session, project)
        model = catalog.add(ModelRow, NewAsset("m", {"builder": "mlp"}, {}), Blob("a" * 64, 10))
        dataset = catalog.add(DatasetRow, NewAsset("d", {"format": "npz"}, {}), Blob("b" * 64, 10))
        for row in (model, dataset):
            accept(row, digest="c" * 64, size_bytes=20, facts={"input_shape": [1, 8, 8], "categories": 10})
        spec = SliceSpec(kind="slice", model_id=model.id, dataset_id=dataset.id)
    return type(
        "Machine",
        (LeaseMachine,),
        {"database": database, "project": project, "spec": spec, "steps": []},
    )


def run(machine: type[LeaseMachine], examples: int, steps: int) -> None:
    profile = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=profile)
    sys.stdout.write(f"{len(machine.steps)} states compared, with up to {max(machine.steps)} jobs\n")


def test_the_lease_keeps_its_word_whatever_comes_in_which_order(machine: type[LeaseMachine]) -> None:
    run(machine, examples=12, steps=30)


@pytest.mark.chaos
def test_the_lease_keeps_its_word_in_very_many_orders(machine: type[LeaseMachine]) -> None:
    run(machine, examples=300, steps=50)
