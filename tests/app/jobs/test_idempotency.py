"""A second request with a key waits a moment for the first, and no longer."""

import threading

import pytest

from app.db import Database
from app.errors import KeyInFlightError, KeyReusedError
from app.jobs import idempotency
from app.jobs.idempotency import recall, remember


def test_while_the_first_is_in_flight_the_second_is_refused(
    database: Database, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "PATIENCE_MS", 50)
    with database.transaction() as first:
        assert recall(first, project, "k", "f") is None
        with pytest.raises(KeyInFlightError) as refusal, database.transaction() as second:
            recall(second, project, "k", "f")
        assert (refusal.value.code, refusal.value.retryable) == ("idempotency_key_in_flight", True)
        remember(first, project, "k", {"status": 202})
    with database.transaction() as third:
        assert recall(third, project, "k", "f") == {"status": 202}
        with pytest.raises(KeyReusedError):
            recall(third, project, "k", "another")


def test_one_that_rolls_back_leaves_the_key_to_the_next(database: Database, project: str) -> None:
    found: list[object] = []

    def second() -> None:
        with database.transaction() as session:
            found.append(recall(session, project, "k", "f"))

    waiting = threading.Thread(target=second)
    with database.transaction() as first:
        recall(first, project, "k", "f")
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        first.rollback()
    waiting.join()
    assert found == [None]
