"""The outbox: nothing that was submitted stays unannounced."""

from collections.abc import Callable

from sqlalchemy import func, select, update

from app.db import Database
from app.jobs.orm import JobRow, OutboxRow
from app.jobs.queue import LocalQueue, QueueUnavailableError, reannounce_stale, relay_outbox

Submit = Callable[[], str]


class FlakyQueue:
    """Takes messages only while `up`."""

    def __init__(self) -> None:
        self.up = True
        self.backlog = False
        self.published: list[tuple[str, str]] = []

    def publish(self, job_id: str, queue: str) -> None:
        if not self.up:
            raise QueueUnavailableError("down")
        self.published.append((job_id, queue))

    def is_available(self) -> bool:
        return self.up

    def has_backlog(self, queue: str) -> bool:
        return self.backlog


def waiting(database: Database) -> int:
    with database.transaction() as session:
        return session.execute(select(func.count()).select_from(OutboxRow)).scalar_one()


def test_messages_wait_while_the_queue_is_down_and_go_out_once(database: Database, submit: Submit) -> None:
    queue = FlakyQueue()
    queue.up = False
    jobs = [submit(), submit()]
    assert relay_outbox(database, queue) == 0
    assert waiting(database) == 2
    queue.up = True
    assert relay_outbox(database, queue) == 2
    assert relay_outbox(database, queue) == 0
    assert queue.published == [(job, "compute") for job in jobs]


def test_a_job_whose_message_got_lost_is_announced_again(database: Database, submit: Submit) -> None:
    queue = FlakyQueue()
    job_id = submit()
    relay_outbox(database, queue)
    assert reannounce_stale(database, queue, older_than_s=60) == 0
    with database.transaction() as session:
        session.execute(update(JobRow).values(queued_at=func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 1)))
    queue.backlog = True
    assert reannounce_stale(database, queue, older_than_s=60) == 0
    queue.backlog = False
    assert reannounce_stale(database, queue, older_than_s=60) == 1
    assert reannounce_stale(database, queue, older_than_s=60) == 0
    relay_outbox(database, queue)
    assert queue.published == [(job_id, "compute")] * 2


def test_the_local_queue_wakes_a_listener(database: Database, submit: Submit) -> None:
    with database.listen(LocalQueue.CHANNEL) as connection:
        submit()
        relay_outbox(database, LocalQueue(database))
        notifications = list(connection.notifies(timeout=5, stop_after=1))
    assert [item.payload for item in notifications] == ["compute"]
