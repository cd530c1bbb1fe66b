"""The bucket that holds all processes of a project to its limit."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import update

from app.db import Database
from app.projects.orm import RequestBucketRow
from app.projects.request_bucket import Draw, draw


@pytest.fixture
def take(database: Database) -> Callable[..., Draw]:
    """Draws from the bucket of one project, in a transaction of its own."""

    def do(per_minute: int, *, given_back: int = 0) -> Draw:
        with database.transaction() as session:
            return draw(session, "prj_x", per_minute, given_back=given_back)

    return do


def turn_back(database: Database, seconds: float) -> None:
    with database.transaction() as session:
        earlier = RequestBucketRow.filled_at - timedelta(seconds=seconds)
        session.execute(update(RequestBucketRow).values(filled_at=earlier))


def test_a_new_bucket_holds_a_minutes_requests(take: Callable[..., Draw]) -> None:
    taken = [take(6).taken for _ in range(8)]
    assert taken == [1, 1, 1, 1, 1, 1, 0, 0]
    assert 9 < take(6).wait_s <= 10


def test_a_draw_is_a_tenth_of_a_second(take: Callable[..., Draw]) -> None:
    first = take(12_000)
    assert (first.taken, round(first.left)) == (20, 11_980)


def test_it_fills_evenly_and_never_over_a_minutes_requests(database: Database, take: Callable[..., Draw]) -> None:
    while take(6).taken:
        pass
    turn_back(database, 21)
    assert [take(6).taken for _ in range(3)] == [1, 1, 0]
    turn_back(database, 3600)
    assert int(take(6).left) == 5


def test_what_was_not_spent_is_given_back(take: Callable[..., Draw]) -> None:
    assert round(take(12_000).left) == 11_980
    assert 11_975 <= take(12_000, given_back=15).left <= 11_990


def test_processes_that_draw_at_once_never_take_more_than_there_is(
    database: Database, take: Callable[..., Draw]
) -> None:
    taken: list[int] = []

    def drain() -> None:
        while tokens := take(30).taken:
            taken.append(tokens)

    threads = [threading.Thread(target=drain) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 30 <= sum(taken) <= 31  # one more comes every two seconds
