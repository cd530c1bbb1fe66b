"""Input made to break the server gets a 4xx problem, and never a 5xx."""

import json
import socket

import httpx
import pytest

from app.jobs.service import JobService
from tests.app.api.conftest import Api

GONE = "job_" + "0" * 26
SPEC = {"builder": "mlp", "kwargs": {"sizes": [4, 3, 2]}, "input_shape": [4]}


def assert_refused(answer: httpx.Response) -> None:
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs/%00",
        "/v1/jobs/job_%C3%A9",
        "/v1/jobs/..%2F..%2Fetc%2Fpasswd",
        f"/v1/jobs/{GONE}/events?after=99999999999999999999",
        f"/v1/jobs/{GONE}/events?limit=-1",
        f"/v1/jobs/{GONE}?wait=nan",
        f"/v1/jobs/{GONE}?wait=1e9",
        "/v1/jobs?cursor=%00",
        "/v1/jobs?status=%00",
        "/v1/jobs?limit=1e99",
        "/v1/models/%00/content",
        "/v1/datasets/%F0%9F%92%A9",
        "/v1/artifacts/%00",
    ],
)
def test_odd_paths_and_queries(client: httpx.Client, path: str) -> None:
    assert_refused(client.get(path))


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"a": "\x00"}},
        {"metadata": {"\x00": "a"}},
        {"metadata": {"a": ["nested"]}},
        {"seed": 10**30},
        {"limit_per_category": 10**30},
        {"sweep": [float("nan")]},
        {"sweep": [[0.5]]},
        {"slicing": []},
        {"slicing": {"threshold": "0.9\x00"}},
    ],
)
def test_odd_job_parameters(client: httpx.Client, job: dict[str, object], change: dict[str, object]) -> None:
    body = json.dumps(job | change)
    assert_refused(client.post("/v1/jobs", content=body, headers={"content-type": "application/json"}))


def test_a_lone_surrogate_is_refused(client: httpx.Client, job: dict[str, object]) -> None:
    body = json.dumps(job | {"metadata": {"a": "X"}}).replace('"X"', '"\\ud800"')
    assert_refused(client.post("/v1/jobs", content=body, headers={"content-type": "application/json"}))


@pytest.mark.parametrize(
    "spec",
    [
        json.dumps(SPEC | {"builder": "\x00"}),
        json.dumps(SPEC | {"kwargs": {"a": "\x00"}}),
        json.dumps(SPEC | {"kwargs": {"\x00": 1}}),
        json.dumps(SPEC).replace("[4, 3, 2]", "1e999"),
        json.dumps(SPEC).replace("[4, 3, 2]", "[" * 100 + "]" * 100),
        json.dumps(SPEC).replace("[4, 3, 2]", "[" * 100_000 + "]" * 100_000),
        json.dumps(SPEC | {"input_shape": [10**40]}),
        json.dumps(SPEC | {"replace": {"\x00": {"type": "ReLU"}}}),
        '{"builder": "\\ud800", "input_shape": [4]}',
        "\x00",
    ],
)
def test_odd_architectures(client: httpx.Client, spec: str) -> None:
    assert_refused(client.post("/v1/models", data={"spec": spec}, files={"file": ("w", b"weights")}))


@pytest.mark.parametrize("metadata", ["[]", '{"a": 1}', '{"a": "\\u0000"}', "{", json.dumps({"k": "v" * 600})])
def test_odd_metadata(client: httpx.Client, metadata: str) -> None:
    form = {"spec": json.dumps(SPEC), "metadata": metadata}
    assert_refused(client.post("/v1/models", data=form, files={"file": ("w", b"weights")}))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"nothing", "multipart/form-data"),
        (b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n\x00\r\n--x--', "multipart/form-data; boundary=x"),
        (b"{}", "application/json"),
        (b"\xff", "text/plain"),
    ],
)
def test_odd_bodies(client: httpx.Client, content: bytes, kind: str) -> None:
    for collection in ("models", "datasets"):
        assert_refused(client.post(f"/v1/{collection}", content=content, headers={"content-type": kind}))


def test_odd_file_names_are_kept_as_far_as_they_can_be(client: httpx.Client) -> None:
    for name in ("../../etc/passwd", "é" * 300, "a\x00b"):
        answer = client.post("/v1/models", data={"spec": json.dumps(SPEC)}, files={"file": (name, b"weights")})
        assert answer.status_code == 202
        assert len(answer.json()["name"]) <= 200


@pytest.mark.parametrize(
    "header",
    ["bytes=abc", "bytes=5-1", "lines=1-2", "bytes=0-1" + ",0-1" * 500, "bytes=-", "bytes=" + "9" * 5000 + "-"],
)
def test_odd_ranges(client: httpx.Client, job: dict[str, object], header: str) -> None:
    answer = client.get(f"/v1/models/{job['model_id']}/content", headers={"Range": header})
    assert answer.status_code == (416 if header == "bytes=5-1" else 200)


@pytest.mark.parametrize("header", ["x", "-1", "1.5", "99999999999999999999"])
def test_odd_last_event_ids(client: httpx.Client, job: dict[str, object], header: str) -> None:
    queued = client.post("/v1/jobs", json=job).json()
    headers = {"Accept": "text/event-stream", "Last-Event-ID": header}
    assert_refused(client.get(queued["links"]["events"], headers=headers))


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_odd_idempotency_keys(client: httpx.Client, job: dict[str, object], key: str) -> None:
    assert_refused(client.post("/v1/jobs", json=job, headers={"Idempotency-Key": key}))


def test_without_a_key_no_body_is_taken_in(api: Api) -> None:
    """The answer comes while the body is still on its way."""
    with socket.create_connection(("127.0.0.1", int(api.url.rsplit(":", 1)[1])), timeout=5) as connection:
        head = b"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        connection.sendall(head + b"Content-Length: 100000\r\n\r\n--x\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def test_a_form_of_many_parts_is_refused(client: httpx.Client) -> None:
    files = [("file", (f"{number}", b"x")) for number in range(20)]
    assert_refused(client.post("/v1/models", data={"spec": json.dumps(SPEC)}, files=files))
    fields = {f"field{number}": "x" for number in range(20)}
    assert_refused(client.post("/v1/models", data={"spec": json.dumps(SPEC), **fields}, files={"file": ("w", b"x")}))


def test_a_failing_server_answers_with_a_problem_that_can_be_traced(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobService, "list", lambda *_, **__: 1 / 0)
    answer = client.get("/v1/jobs")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert client.get("/livez").status_code == 200
