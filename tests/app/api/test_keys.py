"""Keys over HTTP."""

import asyncio
import time
from pathlib import Path

import httpx
import pytest
import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.api import access, failed_authentications
from app.api.failed_authentications import FailedAuthentications
from app.api.key_cache import KeyCache
from app.db import Database
from app.jobs.orm import IdempotencyRow
from app.projects.keys import Principal, authenticate, create_key, revoke_key
from app.settings import Settings
from tests.app.api.conftest import Api, serving


def status(api: Api, key: str, path: str = "/v1/jobs") -> int:
    return httpx.get(api.url + path, headers={"Authorization": f"Bearer {key}"}).status_code


def test_a_key_is_made_used_rotated_and_revoked(api: Api, admin: httpx.Client) -> None:
    made = admin.post("/v1/keys", json={"name": "ci", "scopes": ["read"], "valid_days": 30})
    assert made.status_code == 201
    first, key_id = made.json()["key"], made.json()["id"]
    assert status(api, first) == 200
    rotated = admin.post(f"/v1/keys/{key_id}/rotate", json={"grace_s": 3600})
    second = rotated.json()["key"]
    assert rotated.json()["previous_secret_until"] is not None
    assert (status(api, first), status(api, second)) == (200, 200)
    assert admin.post(f"/v1/keys/{key_id}/rotate", json={"grace_s": 0}).status_code == 200
    assert (status(api, first), status(api, second)) == (401, 401)
    third = admin.post(f"/v1/keys/{key_id}/rotate").json()["key"]
    assert status(api, third) == 200
    for _ in range(2):
        assert admin.delete(f"/v1/keys/{key_id}").status_code == 204
    assert status(api, third) == 401
    listed = admin.get("/v1/keys").json()["data"]
    assert [item["name"] for item in listed] == ["ci", "admin", ""]
    assert listed[0]["revoked_at"] is not None
    assert listed[0]["last_used_at"] is not None
    assert all("key" not in item for item in listed)
    assert admin.post(f"/v1/keys/{key_id}/rotate").json()["code"] == "conflict"


def test_the_list_comes_in_pages(admin: httpx.Client) -> None:
    first = admin.get("/v1/keys", params={"limit": 1}).json()
    rest = admin.get("/v1/keys", params={"limit": 1, "cursor": first["next_cursor"]}).json()
    assert [first["data"][0]["name"], rest["data"][0]["name"]] == ["admin", ""]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/keys"), ("POST", "/v1/keys"), ("GET", "/v1/audit"), ("DELETE", "/v1/keys/0123456789ab")],
)
def test_it_takes_the_scope_admin(client: httpx.Client, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "'admin'" in answer.json()["detail"]


def test_no_key_gives_what_it_has_not(api: Api, admin: httpx.Client) -> None:
    strong = admin.post("/v1/keys", json={"name": "strong", "scopes": ["write"]}).json()
    weak = admin.post("/v1/keys", json={"name": "weak", "scopes": ["read", "admin"]}).json()
    with api.client(weak["key"]) as client:
        for answer in (
            client.post("/v1/keys", json={"name": "x", "scopes": ["write"]}),
            client.post(f"/v1/keys/{strong['id']}/rotate"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
            assert "write" in answer.json()["detail"]
        assert client.post("/v1/keys", json={"name": "x", "scopes": ["read"]}).status_code == 201


def test_a_repeated_request_makes_one_key_and_stores_no_secret(api: Api, admin: httpx.Client) -> None:
    headers = {"Idempotency-Key": "make-it"}
    first = admin.post("/v1/keys", json={"name": "ci"}, headers=headers).json()
    again = admin.post("/v1/keys", json={"name": "ci"}, headers=headers)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == first | {"key": None}
    assert len(admin.get("/v1/keys").json()["data"]) == 3
    with api.database.transaction() as session:
        kept = session.scalars(select(IdempotencyRow.answer).where(IdempotencyRow.project_id == api.project)).one()
    assert first["key"].split("_")[2] not in str(kept)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/name"),
        ({"name": "x", "scopes": []}, "/scopes"),
        ({"name": "x", "scopes": ["root"]}, "/scopes/0"),
        ({"name": "x", "valid_days": 0}, "/valid_days"),
        ({"name": "x", "valid_days": 1e9}, "/valid_days"),
    ],
)
def test_a_bad_wish_is_a_422_that_points_at_it(admin: httpx.Client, body: dict[str, object], pointer: str) -> None:
    answer = admin.post("/v1/keys", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


def test_a_key_revoked_elsewhere_stops_working_soon(api: Api, database: Database, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, key_cache_s=0.2)
    with serving(settings, database) as url, httpx.Client(base_url=url, timeout=20) as client:
        with database.transaction() as session:
            key = create_key(session, project="p", name="")
        client.headers["Authorization"] = f"Bearer {key}"
        assert client.get("/v1/jobs").status_code == 200
        with database.transaction() as session:
            revoke_key(session, key.split("_")[1])
        give_up = time.monotonic() + 20
        while client.get("/v1/jobs").status_code == 200:
            assert time.monotonic() < give_up
            time.sleep(0.05)


def test_a_key_is_verified_once_for_many_requests(
    api: Api, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []

    def counted(session: Session, key: str) -> Principal:
        verified.append(key)
        return authenticate(session, key)

    monkeypatch.setattr(access, "authenticate", counted)
    assert {client.get("/v1/jobs").status_code for _ in range(10)} == {200}
    assert 1 <= len(verified) < 10
    wrong = httpx.get(f"{api.url}/v1/jobs", headers={"Authorization": f"Bearer {api.key[:-1]}"})
    assert wrong.status_code == 401


def test_the_cache_keeps_no_key_longer_than_it_is_valid() -> None:
    cache = KeyCache()
    cache.keep("ended", Principal("p", frozenset(), "k", valid_s=-1.0), 60)
    cache.keep("good", Principal("p", frozenset(), "k", valid_s=60.0), 60)
    assert cache.find("ended") is None
    assert cache.find("good") is not None
    cache.forget("k")
    assert cache.find("good") is None


def test_failed_authentications_are_counted_and_logged_a_line_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_authentications, "LOG_EVERY_S", 0.01)

    async def fail_often() -> int:
        failures = FailedAuthentications()
        for number in range(20):
            with structlog.contextvars.bound_contextvars(request_id=f"req_{number}"):
                failures.note(f"10.0.0.{number}")
        await asyncio.sleep(0.2)
        return failures.total

    processors = [structlog.contextvars.merge_contextvars]
    with structlog.testing.capture_logs(processors) as logged:
        assert asyncio.run(fail_often()) == 20
    assert [line["failures"] for line in logged] == [1, 19]
    assert logged[-1]["last_address"] == "10.0.0.19"
    assert ["request_id" in line for line in logged] == [True, False]
