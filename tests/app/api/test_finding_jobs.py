"""Which jobs a list shows; by which index they are found is test_query_plans.py's."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest

Job = dict[str, object]


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["data"]]


def test_by_several_pairs_of_metadata(client: httpx.Client, job: Job) -> None:
    pairs = ({"run": "7", "team": "vision"}, {"run": "7", "team": "audio"}, {"run": "8", "a[b] c": "ü&="}, {})
    first, second, third, _ = (client.post("/v1/jobs", json=job | {"metadata": pair}).json()["id"] for pair in pairs)
    assert ids(client.get("/v1/jobs", params={"metadata[run]": "7"})) == [second, first]
    assert ids(client.get("/v1/jobs", params={"metadata[run]": "7", "metadata[team]": "vision"})) == [first]
    assert ids(client.get("/v1/jobs", params={"metadata[a[b] c]": "ü&="})) == [third]
    assert ids(client.get("/v1/jobs", params={"metadata[run]": "9"})) == []
    assert ids(client.get("/v1/jobs", params={"metadata[run]": "7", "limit": 1})) == [second]


@pytest.mark.parametrize(
    "query",
    [
        "metadata[]=x",
        "metadata[a]=%00",
        "metadata[%00]=x",
        "metadata[a]=1&metadata[a]=2",
        "metadata[a]=" + "x" * 513,
        "&".join(f"metadata[k{number}]=x" for number in range(17)),
        "created_after=yesterday",
        "created_after=2026-01-01T00:00:00",
        "created_after=1767225600",
        "created_before=9999-12-31T23:59:59-14:00",
        "created_before=1e30",
        "model_id=x",
    ],
)
def test_conditions_that_make_no_sense_are_refused(client: httpx.Client, query: str) -> None:
    answer = client.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")


def test_by_time_and_model(client: httpx.Client, job: Job) -> None:
    first, second = (client.post("/v1/jobs", json=job).json() for _ in range(2))
    assert ids(client.get("/v1/jobs", params={"created_after": first["created_at"]})) == [second["id"]]
    assert ids(client.get("/v1/jobs", params={"created_before": second["created_at"]})) == [first["id"]]
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert ids(client.get("/v1/jobs", params={"created_after": later})) == []
    assert ids(client.get("/v1/jobs", params={"model_id": job["model_id"]})) == [second["id"], first["id"]]
    assert ids(client.get("/v1/jobs", params={"model_id": "mdl_" + "0" * 26})) == []
