"""Who gets in, and what they see."""

import socket
from pathlib import Path

import httpx
import pytest

from app.db import Database
from app.projects.keys import create_key
from app.settings import Settings
from tests.app.api.conftest import Api, serving

PATHS = ["/v1/models", "/v1/datasets", "/v1/jobs", "/v1/artifacts/art_" + "0" * 26]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer nss_0_0"}, {"Authorization": "Basic eDp5"}])
def test_without_a_valid_key_nothing_is_shown(api: Api, path: str, header: dict[str, str]) -> None:
    answer = httpx.get(api.url + path, headers=header)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_read_only_key_changes_nothing(api: Api, job: dict[str, object]) -> None:
    with api.database.transaction() as session:
        key = create_key(session, project=api.project_name, name="", scopes=["read"])
    with api.client(key) as client:
        assert client.get("/v1/jobs").status_code == 200
        answer = client.post("/v1/jobs", json=job)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_another_projects_objects_do_not_exist(api: Api, client: httpx.Client, job: dict[str, object]) -> None:
    mine = client.post("/v1/jobs", json=job).json()
    with api.database.transaction() as session:
        key = create_key(session, project="other", name="")
    with api.client(key) as stranger:
        answers = [
            stranger.get(f"/v1/models/{job['model_id']}"),
            stranger.get(f"/v1/models/{job['model_id']}/content"),
            stranger.delete(f"/v1/models/{job['model_id']}"),
            stranger.get(f"/v1/datasets/{job['dataset_id']}"),
            stranger.delete(f"/v1/datasets/{job['dataset_id']}"),
            stranger.get(mine["links"]["self"]),
            stranger.get(mine["links"]["events"]),
            stranger.get(mine["links"]["artifacts"]),
            stranger.post(mine["links"]["cancel"]),
            stranger.post(mine["links"]["retry"]),
            stranger.post("/v1/jobs", json=job),
        ]
        assert {answer.status_code for answer in answers} == {404}
        assert stranger.get("/v1/jobs").json()["data"] == []
        assert stranger.get("/v1/models").json()["data"] == []
    assert client.get(mine["links"]["self"]).json()["status"] == "queued"


def test_health_needs_no_key(api: Api) -> None:
    assert httpx.get(f"{api.url}/livez").json() == {"status": "alive"}
    assert httpx.get(f"{api.url}/readyz").status_code == 200


def test_unknown_paths_and_methods_are_problems_too(client: httpx.Client) -> None:
    for answer, status in ((client.get("/v2/jobs"), 404), (client.put("/v1/jobs"), 405)):
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_a_refused_method_comes_with_all_that_the_path_takes(client: httpx.Client) -> None:
    answer = client.put("/v1/artifacts/art_01k9zzzzzzzzzzzzzzzzzzzzzz")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET")
    assert answer.json()["hint"] == "This path takes DELETE, GET."


def test_without_its_database_the_api_says_unavailable_and_lives(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        database = Database(f"postgresql://postgres@127.0.0.1:{nobody.getsockname()[1]}/postgres")
        with serving(Settings(data_dir=tmp_path), database) as url, httpx.Client(base_url=url, timeout=30) as client:
            answer = client.get("/v1/jobs", headers={"Authorization": "Bearer nss_a_b"})
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert answer.headers["retry-after"] == "2"
            assert client.get("/livez").status_code == 200
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
            assert ready.json()["database"] == "unreachable"
    database.dispose()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
    ],
)
def test_a_keyless_server_serves_this_machine_only(
    database: Database, tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    settings = Settings(data_dir=tmp_path, keyless=True)
    with serving(settings, database) as url, httpx.Client(base_url=url, timeout=30) as client:
        assert client.get("/v1/jobs", headers=headers).status_code == status
