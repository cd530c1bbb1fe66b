"""From a job's end to the receiver: exactly one message for each webhook and event, through failures of either side."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import pytest
from sqlalchemy import func, text, update
from standardwebhooks import Webhook

from app.db import Database
from app.jobs import completion, leases
from app.jobs.reaper import reap
from app.jobs.service import JobService
from app.settings import Settings
from app.webhooks import delivering
from app.webhooks.delivering import deliver_next, forget_old, take, wait_s
from app.webhooks.orm import DeliveryRow, WebhookRow
from app.webhooks.sending import Sender
from app.webhooks.service import WebhookService
from tests.app.webhooks.conftest import Receiver, read_webhook
from tests.claims import claim_job
from worker.couriers import couriers

Submit = Callable[[], str]
Read = Callable[[], list[DeliveryRow]]


@pytest.fixture
def deliver(settings: Settings, database: Database, sender: Sender) -> Callable[[], int]:
    """Sends all that is due and returns how much that was."""

    def run() -> int:
        count = 0
        while deliver_next(settings, database, sender):
            count += 1
        return count

    return run


def cancel(database: Database, project: str, job_id: str) -> None:
    with database.transaction() as session:
        JobService(session, project, max_attempts=3).cancel(job_id)


def make_due(database: Database) -> None:
    """As if all waits and pauses were over."""
    with database.transaction() as session:
        session.execute(update(DeliveryRow).where(DeliveryRow.status == "pending").values(due_at=func.now()))
        session.execute(update(WebhookRow).values(paused_until=None))


class TestRecording:
    def test_each_status_is_told_once_to_each_webhook_that_wants_it(
        self, database: Database, settings: Settings, project: str, submit: Submit, read_deliveries: Read
    ) -> None:
        with database.transaction() as session:
            service = WebhookService(session, project, settings)
            every = service.create("https://a.example.org/", ["job.queued", "job.started", "job.succeeded"]).id
            ends = service.create("https://b.example.org/", ["job.succeeded", "job.failed"]).id
            service.create("https://c.example.org/", ["job.cancelled"])
        job_id = submit()
        with database.transaction() as session:
            held = claim_job(session, job_id, owner="me", lease_s=60)
            leases.renew(session, held, lease_s=60, progress={"stage": "score"})
        with database.transaction() as session:
            completion.succeed(session, held, result={}, versions={}, outputs=[])
        found = [(row.webhook_id, row.event_type, row.body["data"]["seq"]) for row in read_deliveries()]
        assert sorted(found) == sorted(
            [
                (every, "job.queued", 1),
                (every, "job.started", 2),
                (every, "job.succeeded", 4),
                (ends, "job.succeeded", 4),
            ]
        )
        told = read_deliveries()[-1].body
        assert told["type"] == "job.succeeded"
        assert told["data"]["job_id"] == job_id
        assert told["data"]["status"] == "succeeded"

    def test_an_end_that_is_rolled_back_tells_nobody(
        self, database: Database, project: str, webhook: str, submit: Submit, read_deliveries: Read
    ) -> None:
        job_id = submit()
        with suppress(RuntimeError), database.transaction() as session:
            JobService(session, project, max_attempts=3).cancel(job_id)
            raise RuntimeError
        assert read_deliveries() == []

    def test_a_failure_comes_with_its_error(
        self, database: Database, webhook: str, submit: Submit, read_deliveries: Read
    ) -> None:
        job_id = submit()
        with database.transaction() as session:
            claim_job(session, job_id, owner="me", lease_s=0)
            session.execute(text("UPDATE jobs SET attempt_limit = 1"))
        reap(database)
        (delivery,) = read_deliveries()
        assert delivery.event_type == "job.failed"
        assert delivery.body["data"]["error"]["code"] == "worker_lost"

    def test_a_webhook_being_deleted_does_not_hurt_a_job_that_ends(
        self, database: Database, settings: Settings, project: str, webhook: str, submit: Submit, read_deliveries: Read
    ) -> None:
        job_id = submit()
        with database.transaction() as session:
            WebhookService(session, project, settings).delete(webhook)
            session.flush()
            ending = threading.Thread(target=cancel, args=(database, project, job_id))
            ending.start()
            time.sleep(0.2)
        ending.join()
        with database.transaction() as session:
            assert JobService(session, project, max_attempts=3).get(job_id).status == "cancelled"
        assert read_deliveries() == []

    def test_other_projects_are_not_told(
        self, database: Database, settings: Settings, project: str, submit: Submit, read_deliveries: Read
    ) -> None:
        from app.projects.keys import ensure_project

        with database.transaction() as session:
            stranger = ensure_project(session, "stranger")
            WebhookService(session, stranger, settings).create("https://a.example.org/", ["job.queued"])
        submit()
        assert read_deliveries() == []


class TestSending:
    def test_a_message_can_be_verified_and_is_sent_once(
        self,
        database: Database,
        project: str,
        webhook: str,
        submit: Submit,
        receiver: Receiver,
        deliver: Callable[[], int],
        read_deliveries: Read,
    ) -> None:
        cancel(database, project, submit())
        assert (deliver(), deliver()) == (1, 0)
        (message,) = receiver.messages
        secret = read_webhook(database, webhook).secret
        told = Webhook(secret).verify(message.body, message.headers)
        (delivery,) = read_deliveries()
        assert told == delivery.body
        assert message.headers["webhook-id"] == delivery.event_id
        assert (delivery.status, delivery.tries) == ("delivered", 1)
        (entry,) = delivery.log
        assert (entry["status_code"], entry["response"], entry["error"]) == (200, "thank you", None)

    def test_a_failure_is_tried_again_with_the_same_id_and_body(
        self,
        database: Database,
        project: str,
        webhook: str,
        submit: Submit,
        receiver: Receiver,
        deliver: Callable[[], int],
        read_deliveries: Read,
    ) -> None:
        receiver.status = 503
        cancel(database, project, submit())
        assert deliver() == 1
        (delivery,) = read_deliveries()
        assert (delivery.status, delivery.log[0]["status_code"]) == ("pending", 503)
        assert deliver() == 0
        receiver.status = 200
        make_due(database)
        assert deliver() == 1
        first, second = receiver.messages
        assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
        assert [entry["number"] for entry in read_deliveries()[0].log] == [1, 2]
        assert read_webhook(database, webhook).failures == 0

    def test_waits_grow_over_hours_and_then_it_is_given_up(
        self,
        database: Database,
        project: str,
        webhook: str,
        submit: Submit,
        receiver: Receiver,
        deliver: Callable[[], int],
        read_deliveries: Read,
    ) -> None:
        waits = [wait_s(number) for number in range(1, 10)]
        assert waits[:7] == sorted(waits[:7])
        assert 4 <= waits[0] <= 6
        assert 20 * 3600 < sum(waits) < 48 * 3600
        receiver.status = 500
        cancel(database, project, submit())
        for _ in range(12):
            deliver()
            make_due(database)
        (delivery,) = read_deliveries()
        assert (delivery.status, delivery.tries, len(receiver.messages)) == ("failed", 10, 10)

    def test_a_webhook_that_takes_nothing_is_paused_then_disabled(
        self,
        database: Database,
        project: str,
        webhook: str,
        submit: Submit,
        receiver: Receiver,
        deliver: Callable[[], int],
        read_deliveries: Read,
    ) -> None:
        receiver.status = 500
        for _ in range(3):
            cancel(database, project, submit())
        assert deliver() == 1, "the others wait until the pause is over"
        row = read_webhook(database, webhook)
        assert (row.failures, row.disabled_at) == (1, None)
        assert row.paused_until is not None
        with database.transaction() as session:
            session.execute(update(WebhookRow).values(failing_since=func.now() - timedelta(days=6)))
        make_due(database)
        assert deliver() == 1
        row = read_webhook(database, webhook)
        assert (row.disabled_reason or "").startswith("Nothing has been taken since ")
        assert {delivery.status for delivery in read_deliveries()} == {"failed"}
        cancel(database, project, submit())
        assert len(read_deliveries()) == 3

    def test_gone_disables_at_once(
        self,
        database: Database,
        project: str,
        webhook: str,
        submit: Submit,
        receiver: Receiver,
        deliver: Callable[[], int],
    ) -> None:
        receiver.status = 410
        cancel(database, project, submit())
        deliver()
        assert read_webhook(database, webhook).disabled_reason == "The receiver answered 410 Gone."

    def test_a_rotated_secret_signs_along_until_its_time_is_up(
        self,
        database: Database,
        settings: Settings,
        project: str,
        webhook: str,
        submit: Submit,
        receiver: Receiver,
        deliver: Callable[[], int],
    ) -> None:
        old = read_webhook(database, webhook).secret
        with database.transaction() as session:
            new = WebhookService(session, project, settings).rotate(webhook, overlap_s=3600).secret
        cancel(database, project, submit())
        deliver()
        with database.transaction() as session:
            session.execute(update(WebhookRow).values(previous_until=func.now()))
        cancel(database, project, submit())
        deliver()
        during, after = receiver.messages
        for secret in (old, new):
            Webhook(secret).verify(during.body, during.headers)
        assert len(after.headers["webhook-signature"].split()) == 1
        Webhook(new).verify(after.body, after.headers)


class TestSeveralSenders:
    def test_a_delivery_is_taken_by_one_and_comes_due_again_if_that_one_dies(
        self, database: Database, project: str, webhook: str, submit: Submit, read_deliveries: Read
    ) -> None:
        cancel(database, project, submit())
        with database.transaction() as one, database.transaction() as other:
            assert take(one) is not None
            assert take(other) is None, "what another takes at this moment is skipped, not waited for"
        with database.transaction() as session:
            assert take(session) is None, "the first has it for a while"
        make_due(database)
        with database.transaction() as session:
            again = take(session)
            assert again is not None
            assert again.number == 2

    def test_a_sender_that_comes_too_late_changes_nothing(
        self,
        settings: Settings,
        database: Database,
        sender: Sender,
        project: str,
        webhook: str,
        submit: Submit,
        read_deliveries: Read,
    ) -> None:
        cancel(database, project, submit())
        with database.transaction() as session:
            late = take(session)
        assert late is not None
        make_due(database)
        assert deliver_next(settings, database, sender)
        outcome = delivering.Outcome(duration_ms=1, status_code=500)
        with database.transaction() as session:
            delivering.settle(session, late, outcome, disable_after_s=1)
        (delivery,) = read_deliveries()
        assert (delivery.status, len(delivery.log)) == ("delivered", 1)

    def test_no_transaction_is_open_while_a_message_is_sent(
        self, settings: Settings, database: Database, project: str, webhook: str, submit: Submit, receiver: Receiver
    ) -> None:
        receiver.dribble_s, receiver.answer = 0.1, b"x" * 10
        cancel(database, project, submit())
        sending = threading.Thread(target=deliver_next, args=(settings, database, Sender(settings)))
        sending.start()
        while not receiver.messages:
            time.sleep(0.01)
        is_open = "state LIKE 'idle in transaction%' AND datname = current_database()"
        query = f"SELECT count(*) FROM pg_stat_activity WHERE {is_open}"
        with database.transaction() as session:
            assert session.execute(text(query)).scalar_one() == 0
        assert sending.is_alive()
        sending.join()

    def test_two_relays_send_each_message_once(
        self,
        settings: Settings,
        database: Database,
        project: str,
        webhook: str,
        submit: Submit,
        receiver: Receiver,
        read_deliveries: Read,
    ) -> None:
        for _ in range(20):
            cancel(database, project, submit())
        stopping = threading.Event()
        with couriers(settings, database, stopping), couriers(settings, database, stopping):
            while len(receiver.messages) < 20 or any(row.status != "delivered" for row in read_deliveries()):
                time.sleep(0.02)
        assert sorted(receiver.ids()) == sorted(row.event_id for row in read_deliveries())
        assert {json.loads(message.body)["type"] for message in receiver.messages} == {"job.cancelled"}


def test_settled_deliveries_are_forgotten_after_a_month(
    database: Database, project: str, webhook: str, submit: Submit, deliver: Callable[[], int], read_deliveries: Read
) -> None:
    for _ in range(2):
        cancel(database, project, submit())
    deliver()
    old, new = read_deliveries()
    cancel(database, project, submit())
    with database.transaction() as session:
        session.execute(
            update(DeliveryRow)
            .where(DeliveryRow.event_id != new.event_id)
            .values(created_at=func.now() - timedelta(days=31))
        )
    forget_old(database)
    kept = read_deliveries()
    assert old.event_id not in [row.event_id for row in kept]
    assert [row.status for row in kept] == ["delivered", "pending"]
