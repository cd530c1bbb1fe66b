"""Event streams through dropped connections and in large numbers."""

import json
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
from sqlalchemy import text

from app.jobs import leases
from tests.app.api.conftest import Api
from tests.app.api.test_jobs import PROGRESS, claim, succeed

Job = dict[str, object]
STREAMS = 200


def read_some(client: httpx.Client, url: str, after: int, count: int) -> tuple[list[int], bool]:
    """At most `count` events after that one, then the connection is dropped; and whether the stream had ended."""
    seen: list[int] = []
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
    with client.stream("GET", url, headers=headers) as answer:
        for line in answer.iter_lines():
            if line.startswith("id: "):
                seen.append(int(line.removeprefix("id: ")))
            if not line and len(seen) == count:
                return seen, False
    return seen, True


def test_a_dropped_stream_goes_on_without_gap_or_repetition(api: Api, client: httpx.Client, job: Job) -> None:
    queued = client.post("/v1/jobs", json=job).json()
    held = claim(api, queued["id"])

    def work() -> None:
        for done in range(40):
            with api.database.transaction() as session:
                leases.renew(session, held, lease_s=60, progress=PROGRESS | {"done": done})
            time.sleep(0.005)
        succeed(api, held)

    working = threading.Thread(target=work)
    working.start()
    seen: list[int] = []
    has_ended = False
    while not has_ended:
        some, has_ended = read_some(client, queued["links"]["events"], seen[-1] if seen else 0, 3)
        seen += some
    working.join()
    assert seen == list(range(1, 44))
    assert read_some(client, queued["links"]["events"], 43, 1) == ([], True)


def test_hundreds_of_idle_streams_take_no_thread_and_no_connection(api: Api, client: httpx.Client, job: Job) -> None:
    queued = client.post("/v1/jobs", json=job).json()
    address = urlsplit(api.url)
    request = (
        f"GET {queued['links']['events']} HTTP/1.1\r\nHost: {address.netloc}\r\nAccept: text/event-stream\r\n"
        f"Authorization: Bearer {api.key}\r\n\r\n"
    ).encode()
    streams = [socket.create_connection((address.hostname, address.port), timeout=30) for _ in range(STREAMS)]
    try:
        for stream in streams:
            stream.sendall(request)
        for stream in streams:
            received = b""
            while b'"status":"queued"' not in received:
                received += stream.recv(65536)
        threads = threading.active_count()
        with api.database.transaction() as session:
            busy = "state <> 'idle' AND pid <> pg_backend_pid() AND datname = current_database() AND query !~ 'LISTEN'"
            assert session.execute(text(f"SELECT count(*) FROM pg_stat_activity WHERE {busy}")).scalar_one() == 0
            everything = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            assert session.execute(text(everything)).scalar_one() < STREAMS / 4
        assert threads < STREAMS / 4
        assert client.get(queued["links"]["self"]).status_code == 200
        client.post(queued["links"]["cancel"])
        for stream in streams:
            received = b""
            while not received.endswith(b"0\r\n\r\n"):
                received += stream.recv(65536)
            assert json.loads(received.partition(b"data: ")[2].partition(b"\n")[0])["data"]["status"] == "cancelled"
    finally:
        for stream in streams:
            stream.close()
