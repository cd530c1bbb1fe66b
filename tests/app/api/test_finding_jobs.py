"""Which jobs a list shows, and by which index they are found."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy import select, text

from app.jobs.filters import JobFilter
from app.jobs.orm import JobRow
from tests.app.api.conftest import Api
from tests.app.jobs.test_query_plans import explained

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


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (JobFilter(metadata={"run": "7"}), "ix_jobs_metadata"),
        (JobFilter(model_id="mdl_" + "0" * 26), "ix_jobs_model"),
        (JobFilter(created_after=datetime(2026, 1, 1, tzinfo=UTC)), "ix_jobs_project_id_created_at"),
    ],
)
def test_each_condition_has_an_index_that_serves_it(api: Api, wanted: JobFilter, index: str) -> None:
    (condition,) = wanted.conditions()[1:]
    others = "SELECT indexname FROM pg_indexes WHERE tablename = 'jobs' AND indexname NOT IN ('pk_jobs', :index)"
    with api.database.transaction() as session:
        for other in session.scalars(text(others), {"index": index}).all():
            session.execute(text(f"DROP INDEX {other}"))
        session.execute(text("SET LOCAL enable_seqscan = off"))
        with explained(api.database) as plans:
            session.execute(select(JobRow.id).where(JobRow.project_id == api.project, condition))
        session.rollback()
    assert index in plans[0]
