"""How many SQL statements the requests take that clients send most: each is a round trip, and most of the work."""

from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import event

from tests.app.api.conftest import Api

Job = dict[str, object]


def fewest(api: Api, request: Callable[[], httpx.Response]) -> int:
    """Of several tries: now and then one also takes a picture of the queues, or asks again who holds the key."""
    counts = []
    for _ in range(5):
        statements: list[str] = []

        def note(connection: object, cursor: object, statement: str, *_: object, into: list[str] = statements) -> None:
            into.append(statement)

        event.listen(api.database.engine, "after_cursor_execute", note)
        try:
            assert request().is_success
        finally:
            event.remove(api.database.engine, "after_cursor_execute", note)
        counts.append(len(statements))
    return min(counts)


def test_looking_takes_a_statement_for_each_table(api: Api, client: httpx.Client, job: Job) -> None:
    path = client.post("/v1/jobs", json=job).headers["location"]
    assert fewest(api, lambda: client.get(path)) == 2
    assert fewest(api, lambda: client.get("/v1/jobs")) == 1


@pytest.mark.parametrize(("headers", "statements"), [({}, 11), ({"Idempotency-Key": "k"}, 15)])
def test_submitting_writes_each_row_once(
    api: Api, client: httpx.Client, job: Job, headers: dict[str, str], statements: int
) -> None:
    numbers = iter(range(5))

    def submit() -> httpx.Response:
        fresh = {name: f"{value}{next(numbers)}" for name, value in headers.items()}
        return client.post("/v1/jobs", json=job, headers=fresh)

    assert fewest(api, submit) == statements
