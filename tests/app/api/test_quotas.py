"""What a project may have, over HTTP."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from app.db import Database
from app.projects.directory import set_limits
from app.projects.keys import create_key
from app.projects.orm import ProjectRow
from tests.app.api.conftest import Api, serving
from tests.claims import claim_job

SPEC = '{"builder": "mlp", "kwargs": {"sizes": [64, 8, 10]}, "input_shape": [1, 8, 8]}'


def limit(database: Database, project_id: str, **limits: int) -> None:
    with database.transaction() as session:
        set_limits(session, session.get_one(ProjectRow, project_id), limits)


def upload(client: httpx.Client, content: bytes) -> httpx.Response:
    return client.post("/v1/models", data={"spec": SPEC}, files={"file": ("w", content)})


class TestQueue:
    def test_no_more_jobs_wait_than_may(self, api: Api, client: httpx.Client, job: dict[str, object]) -> None:
        limit(api.database, api.project, max_queued_jobs=2)
        ids = [client.post("/v1/jobs", json=job).json()["id"] for _ in range(2)]
        refused = client.post("/v1/jobs", json=job)
        assert (refused.status_code, refused.json()["code"]) == (409, "queue_quota_exceeded")
        assert refused.json()["detail"] == "The project has 2 jobs in the queue; it may have 2."
        assert (refused.json()["retryable"], refused.headers["retry-after"]) == (True, "10")
        assert upload(client, b"weights").status_code == 202  # inspections do not count
        with api.database.transaction() as session:
            claim_job(session, ids[0], owner="test", lease_s=60)
        assert client.post("/v1/jobs", json=job).status_code == 202

    def test_nor_by_a_retry(self, api: Api, client: httpx.Client, job: dict[str, object]) -> None:
        first = client.post("/v1/jobs", json=job).json()["id"]
        client.post(f"/v1/jobs/{first}/cancel")
        client.post("/v1/jobs", json=job)
        limit(api.database, api.project, max_queued_jobs=1)
        assert client.post(f"/v1/jobs/{first}/retry").json()["code"] == "queue_quota_exceeded"

    def test_nor_when_many_come_at_once(self, api: Api, client: httpx.Client, job: dict[str, object]) -> None:
        limit(api.database, api.project, max_queued_jobs=3)
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(client.post("/v1/jobs", json=job).status_code))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [202] * 3 + [409] * 5


class TestStorage:
    def test_no_more_is_stored_than_may(self, api: Api, client: httpx.Client) -> None:
        limit(api.database, api.project, max_stored_bytes=1000)
        first = upload(client, b"a" * 600).json()["id"]
        refused = upload(client, b"b" * 600)
        assert (refused.status_code, refused.json()["code"]) == (409, "storage_quota_exceeded")
        assert (
            refused.json()["detail"] == "The project stores 600 of the 1000 bytes that it may, and this needs 600 more."
        )
        assert "retry-after" not in refused.headers
        assert client.delete(f"/v1/models/{first}").status_code == 204
        assert upload(client, b"b" * 600).status_code == 202

    def test_nor_in_parts_and_the_room_is_reserved(self, api: Api, client: httpx.Client) -> None:
        limit(api.database, api.project, max_stored_bytes=1000)
        assert client.post("/v1/uploads", json={"size_bytes": 600}).status_code == 201
        assert client.post("/v1/uploads", json={"size_bytes": 600}).json()["code"] == "storage_quota_exceeded"
        assert upload(client, b"b" * 600).json()["code"] == "storage_quota_exceeded"

    def test_what_is_there_already_needs_no_room(self, api: Api, client: httpx.Client) -> None:
        upload(client, b"a" * 600)
        limit(api.database, api.project, max_stored_bytes=700)
        assert upload(client, b"a" * 600).status_code == 202

    def test_a_full_project_starts_no_jobs(self, api: Api, client: httpx.Client, job: dict[str, object]) -> None:
        limit(api.database, api.project, max_stored_bytes=10)
        assert client.post("/v1/jobs", json=job).json()["code"] == "storage_quota_exceeded"


def test_a_project_sees_its_limits_and_what_it_uses(api: Api, client: httpx.Client, job: dict[str, object]) -> None:
    limit(api.database, api.project, max_running_jobs=3, max_queued_jobs=7, max_stored_bytes=10**6)
    client.post("/v1/jobs", json=job)
    project = client.get("/v1/project").json()
    assert (project["id"], project["name"]) == (api.project, api.project_name)
    limits = {"max_running_jobs": 3, "max_queued_jobs": 7, "max_stored_bytes": 10**6, "requests_per_minute": None}
    assert project["limits"] == limits
    assert project["usage"] == {"queued_jobs": 1, "running_jobs": 0, "stored_bytes": 1024}


class TestRate:
    @pytest.fixture
    def two_servers(self, server: Api) -> Iterator[Callable[..., list[httpx.Client]]]:
        """Starts two API processes' worth of servers on one database; gives a client of each, with a fresh key."""
        with ExitStack() as stack:

            def start(**limits: int) -> list[httpx.Client]:
                with server.database.transaction() as session:
                    key = create_key(session, project=f"rate-{time.monotonic_ns()}", name="")
                    project_id = session.query(ProjectRow).order_by(ProjectRow.created_at.desc()).first().id
                limit(server.database, project_id, **limits)
                urls = [stack.enter_context(serving(server.settings, server.database)) for _ in range(2)]
                headers = {"Authorization": f"Bearer {key}"}
                return [stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=20)) for url in urls]

            yield start

    def test_all_processes_together_hold_the_limit(self, two_servers: Callable[..., list[httpx.Client]]) -> None:
        clients = two_servers(requests_per_minute=12)
        answers = [clients[number % 2].get("/v1/models") for number in range(20)]
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(200) in (12, 13)  # one more comes every five seconds
        assert set(statuses[:12]) == {200}
        refused = answers[-1]
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert refused.json()["retryable"] is True
        assert 1 <= int(refused.headers["retry-after"]) <= 5
        for answer in answers:
            assert answer.headers["ratelimit-policy"] == '"project";q=12;w=60'
            assert re.fullmatch(r'"project";r=\d+;t=\d+', answer.headers["ratelimit"])
        assert answers[0].headers["ratelimit"] == '"project";r=11;t=5'
        assert refused.headers["ratelimit"] == f'"project";r=0;t={refused.headers["retry-after"]}'

    def test_a_high_rate_costs_few_draws(
        self, two_servers: Callable[..., list[httpx.Client]], server: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from app.api import request_rates

        draws: list[int] = []
        draw = request_rates.draw

        def counted(*arguments: object, **options: int) -> object:
            draws.append(1)
            return draw(*arguments, **options)

        monkeypatch.setattr(request_rates, "draw", counted)
        client, _ = two_servers(requests_per_minute=12_000)
        remaining = []
        for _ in range(19):
            answer = client.get("/v1/models")
            assert answer.status_code == 200
            remaining.append(int(re.search(r"r=(\d+)", answer.headers["ratelimit"]).group(1)))
        assert len(draws) < 10
        assert remaining[0] == 11_999

    def test_without_a_limit_there_are_no_fields(self, client: httpx.Client) -> None:
        answer = client.get("/v1/models")
        assert "ratelimit" not in answer.headers
        assert "ratelimit-policy" not in answer.headers
