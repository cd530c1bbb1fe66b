"""Slow storage does not keep those waiting who only ask."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from app.artifacts.store import LocalBlobStore
from app.db import CONNECTIONS
from tests.app.api.conftest import Api

UPLOADS = CONNECTIONS + 2


def test_reads_are_answered_while_many_uploads_wait_for_the_disk(
    api: Api, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, waiting = threading.Event(), threading.Semaphore(0)
    real = LocalBlobStore.put_stream

    def slow(store: LocalBlobStore, *arguments, **options):
        waiting.release()
        assert released.wait(60)
        return real(store, *arguments, **options)

    monkeypatch.setattr(LocalBlobStore, "put_stream", slow)

    def upload(number: int) -> int:
        with api.client() as mine:
            mine.timeout = httpx.Timeout(120)
            return mine.post("/v1/datasets", files={"file": ("d.npz", bytes([number]) * 9)}).status_code

    with ThreadPoolExecutor(UPLOADS) as threads:
        uploads = [threads.submit(upload, number) for number in range(UPLOADS)]
        try:
            assert all(waiting.acquire(timeout=60) for _ in range(UPLOADS))
            assert client.get("/v1/jobs").status_code == 200
        finally:
            released.set()
        assert [done.result() for done in uploads] == [202] * UPLOADS
