"""What the log says of a request, and how its id goes on to the job."""

from collections.abc import Iterator

import httpx
import pytest
import structlog
from structlog.testing import LogCapture

from app.jobs.orm import JobRow
from tests.app.api.conftest import Api

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def lines() -> Iterator[list[dict[str, object]]]:
    """The lines that the API writes from now on."""
    former, capture = structlog.get_config()["processors"], LogCapture()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    yield capture.entries  # type: ignore[misc]
    structlog.configure(processors=former)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ("build-17/3", False),
        ("a" * 129, False),
        ("a b", False),
        ("", False),
        ("7b1c2f7e-4f63-4d0c-9b5e-0a1b2c3d4e5f", True),
        ("ci:run_17.3", True),
    ],
)
def test_a_sane_request_id_is_taken_any_other_is_replaced(client: httpx.Client, asked: str, taken: bool) -> None:
    answer = client.get("/v1/jobs/job_00000000000000000000000000", headers={"X-Request-ID": asked})
    given = answer.headers["x-request-id"]
    assert given == asked if taken else given.startswith("req_")
    assert answer.json()["request_id"] == given


def test_a_job_keeps_the_request_that_submitted_it(api: Api, client: httpx.Client, job: dict[str, object]) -> None:
    headers = {"X-Request-ID": "ci-17", "traceparent": PARENT}
    submitted = client.post("/v1/jobs", json=job, headers=headers).json()
    other = client.post("/v1/jobs", json=job, headers={"traceparent": "00-nothing"})
    with api.database.transaction() as session:
        row, plain = session.get_one(JobRow, submitted["id"]), session.get_one(JobRow, other.json()["id"])
    assert (row.request_id, row.traceparent) == ("ci-17", PARENT)
    assert (plain.request_id, plain.traceparent) == (other.headers["x-request-id"], None)


def test_each_request_is_one_line_that_says_who_asked_and_no_secret(
    api: Api, client: httpx.Client, lines: list[dict[str, object]]
) -> None:
    client.get("/v1/jobs", headers={"X-Request-ID": "ci-18"})
    httpx.get(f"{api.url}/v1/jobs", headers={"Authorization": "Bearer nss_x_y"})
    httpx.get(f"{api.url}/livez")
    mine, strangers = (line for line in lines if line["event"] == "request")
    key_id, secret = api.key.split("_")[1:]
    assert {name: mine[name] for name in ("method", "path", "status", "request_id")} == {
        "method": "GET",
        "path": "/v1/jobs",
        "status": 200,
        "request_id": "ci-18",
    }
    assert (mine["project_id"], mine["key_id"]) == (api.project, key_id)
    assert (strangers["status"], strangers["project_id"], strangers["key_id"]) == (401, None, None)
    assert secret not in str(lines)
