"""Jobs that are only tried, made like others, bounded in time; what their processes printed; what need not be read."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy import func, text, update

from app.artifacts.orm import DatasetRow, ModelRow
from app.jobs.logs import keep_log
from app.jobs.orm import JobRow
from tests.app.api.conftest import Api
from tests.app.api.test_jobs import claim, succeed

Job = dict[str, object]
MODEL_FACTS = {"parameters": 1_000_000, "flops": 5_000_000, "sliceable_layers": [{"name": "a", "neurons": 300}]}
DATASET_FACTS = {"samples": {"train": {"total": 1000, "per_category": [100] * 10}}}


def in_an_hour() -> str:
    return (datetime.now(UTC) + timedelta(hours=1)).isoformat()


class TestDryRun:
    def test_queues_nothing_and_uses_no_key_up(self, client: httpx.Client, job: Job) -> None:
        headers = {"Idempotency-Key": "k"}
        answer = client.post("/v1/jobs?dry_run=true", json=job | {"seed": 3}, headers=headers)
        tried = answer.json()
        assert (answer.status_code, tried["valid"], tried["kind"], tried["seed"]) == (200, True, "slice", 3)
        assert client.get("/v1/jobs").json()["data"] == []
        queued = client.post("/v1/jobs", json=job, headers=headers)
        assert (queued.status_code, "idempotent-replayed" in queued.headers) == (202, False)
        assert queued.json()["config"] == tried["config"]

    @pytest.mark.parametrize(
        ("change", "status"),
        [
            ({"model_id": "mdl_" + "0" * 26}, 404),
            ({"slicing": {"metric": "magic"}}, 422),
            ({"deadline": "2020-01-01T00:00:00Z"}, 422),
        ],
    )
    def test_refuses_what_a_submission_would_refuse(
        self, client: httpx.Client, job: Job, change: Job, status: int
    ) -> None:
        tried, submitted = (client.post(f"/v1/jobs{query}", json=job | change) for query in ("?dry_run=true", ""))
        assert (tried.status_code, submitted.status_code) == (status, status)
        assert tried.json() | {"request_id": ""} == submitted.json() | {"request_id": ""}

    def test_the_estimate_says_what_it_rests_on_and_learns(self, api: Api, client: httpx.Client, job: Job) -> None:
        with api.database.transaction() as session:
            for kind, row_id, facts in (
                (ModelRow, job["model_id"], MODEL_FACTS),
                (DatasetRow, job["dataset_id"], DATASET_FACTS),
            ):
                row = session.get_one(kind, row_id)
                row.facts = (row.facts or {}) | facts
        first = client.post("/v1/jobs?dry_run=true", json=job).json()["estimate"]
        assert (first["quality"], first["based_on_jobs"]) == ("assumed", 0)
        assert first["operations"] == 1000 * (3 + 1) * 5_000_000
        features = 4 * 300 * 256 * 10
        assert first["memory_bytes"] > features + 2 * 4 * 1_000_000
        done = client.post("/v1/jobs", json=job).json()["id"]
        succeed(api, claim(api, done))
        with api.database.transaction() as session:
            took = func.clock_timestamp() - timedelta(seconds=105)
            session.execute(update(JobRow).where(JobRow.id == done).values(started_at=took))
        again = client.post("/v1/jobs?dry_run=true", json=job).json()["estimate"]
        assert (again["quality"], again["based_on_jobs"]) == ("same_model", 1)
        assert again["duration_s"]["likely"] == pytest.approx(105, abs=3)
        assert again["duration_s"]["low"] < again["duration_s"]["likely"] < again["duration_s"]["high"]
        half = client.post("/v1/jobs?dry_run=true", json=job | {"limit_per_category": 50}).json()["estimate"]
        assert half["duration_s"]["likely"] == pytest.approx(55, abs=3)
        other = client.post("/v1/jobs?dry_run=true", json=job | {"kind": "restructure", "slicing": {}}).json()
        assert other["estimate"]["quality"] == "other_jobs"


class TestClone:
    def test_is_the_same_job_again(self, client: httpx.Client, job: Job) -> None:
        more = {"seed": 7, "metadata": {"run": "1"}, "max_runtime_s": 60, "deadline": in_an_hour()}
        original = client.post("/v1/jobs", json=job | more).json()
        answer = client.post(original["links"]["clone"])
        clone = answer.json()
        assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{clone['id']}")
        assert (clone["cloned_from"], original["cloned_from"]) == (original["id"], None)
        for field in ("kind", "config", "seed", "metadata", "max_runtime_s"):
            assert clone[field] == original[field]
        assert (clone["id"] != original["id"], clone["deadline"]) == (True, None)

    def test_but_for_what_is_changed(self, client: httpx.Client, job: Job) -> None:
        original = client.post("/v1/jobs", json=job | {"slicing": {"threshold": 0.9, "metric": "avg"}}).json()
        changes = {"slicing": {"threshold": None, "target_compression": 0.5}, "seed": 9, "metadata": {"run": "2"}}
        clone = client.post(original["links"]["clone"], json=changes).json()
        assert (clone["seed"], clone["metadata"]) == (9, {"run": "2"})
        slicing = original["config"]["slicing"] | {"threshold": None, "target_compression": 0.5}
        assert clone["config"]["slicing"] == slicing

    @pytest.mark.parametrize(
        ("changes", "pointer"),
        [
            ({"slicing": {"metric": "magic"}}, "/slicing/metric"),
            ({"model_id": None}, "/model_id"),
            ({"thresold": 1}, "/thresold"),
            ({"kind": "magic"}, ""),
            ({"deadline": "2020-01-01T00:00:00Z"}, "/deadline"),
        ],
    )
    def test_a_change_that_makes_no_job_points_at_the_field(
        self, client: httpx.Client, job: Job, changes: Job, pointer: str
    ) -> None:
        original = client.post("/v1/jobs", json=job).json()
        answer = client.post(original["links"]["clone"], json=changes)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)

    def test_takes_effect_once(self, client: httpx.Client, job: Job) -> None:
        original = client.post("/v1/jobs", json=job).json()
        headers = {"Idempotency-Key": "c"}
        first, second = (client.post(original["links"]["clone"], json={"seed": 1}, headers=headers) for _ in range(2))
        assert first.json() == second.json()
        assert client.post(original["links"]["clone"], json={"seed": 2}, headers=headers).status_code == 422

    def test_of_a_job_of_another_project_or_none_is_a_404(self, client: httpx.Client) -> None:
        assert client.post("/v1/jobs/job_" + "0" * 26 + "/clone").status_code == 404


class TestTimes:
    @pytest.mark.parametrize(
        ("change", "pointer"),
        [
            ({"deadline": "2020-01-01T00:00:00Z"}, "/deadline"),
            ({"deadline": "2030-01-01T00:00:00"}, "/deadline"),
            ({"deadline": "9999-12-31T23:59:59-14:00"}, "/deadline"),
            ({"deadline": "soon"}, "/deadline"),
            ({"max_runtime_s": 0}, "/max_runtime_s"),
            ({"max_runtime_s": 1e12}, "/max_runtime_s"),
        ],
    )
    def test_that_make_no_sense_are_refused(self, client: httpx.Client, job: Job, change: Job, pointer: str) -> None:
        answer = client.post("/v1/jobs", json=job | change)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)

    def test_are_shown_in_utc(self, client: httpx.Client, job: Job) -> None:
        more = {"deadline": "2031-01-01T02:00:00+02:00", "max_runtime_s": 90.5}
        queued = client.post("/v1/jobs", json=job | more).json()
        assert datetime.fromisoformat(queued["deadline"]) == datetime(2031, 1, 1, tzinfo=UTC)
        assert queued["max_runtime_s"] == 90.5

    def test_after_its_deadline_a_job_is_cloned_not_retried(self, api: Api, client: httpx.Client, job: Job) -> None:
        queued = client.post("/v1/jobs", json=job | {"deadline": in_an_hour()}).json()
        client.post(queued["links"]["cancel"])
        with api.database.transaction() as session:
            session.execute(text("UPDATE jobs SET deadline = now() WHERE id = :id"), {"id": queued["id"]})
        refusal = client.post(queued["links"]["retry"])
        assert (refusal.status_code, "clone" in refusal.json()["hint"]) == (409, True)
        assert client.post(queued["links"]["clone"]).status_code == 202


def test_logs_by_attempt(api: Api, client: httpx.Client, job: Job) -> None:
    queued = client.post("/v1/jobs", json=job).json()
    missing = client.get(queued["links"]["logs"])
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    for content in (b"first \xff", b"second"):
        held = claim(api, queued["id"])
        with api.database.transaction() as session:
            keep_log(session, held, content)
            session.execute(text("UPDATE jobs SET status = 'queued' WHERE id = :id"), {"id": queued["id"]})
    last = client.get(queued["links"]["logs"])
    assert (last.content, last.headers["x-attempt"]) == (b"second", "2")
    assert last.headers["content-type"] == "text/plain; charset=utf-8"
    first = client.get(queued["links"]["logs"], params={"attempt": 1, "tail": 3})
    assert (first.content, first.headers["x-log-bytes"]) == (b"t \xff", "7")
    assert client.get(queued["links"]["logs"], params={"attempt": 3}).status_code == 404


def test_a_job_that_has_not_changed_is_not_sent_again(api: Api, client: httpx.Client, job: Job) -> None:
    queued = client.post("/v1/jobs", json=job).json()
    first = client.get(queued["links"]["self"])
    known = {"If-None-Match": first.headers["etag"]}
    again = client.get(queued["links"]["self"], headers=known)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    claim(api, queued["id"])
    changed = client.get(queued["links"]["self"], headers=known)
    assert (changed.status_code, changed.json()["status"]) == (200, "running")
