"""The metrics, scraped from real APIs, are what the rows say."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text
from sqlalchemy.dialects import postgresql

from app.api import job_metrics
from app.db import Database
from app.jobs import completion, figures, leases
from app.jobs.problems import problem
from app.jobs.workers import Worker, beat
from app.main import create_app
from app.projects.keys import create_key
from app.settings import Settings
from tests.app.api.conftest import serving
from tests.app.jobs import conftest as jobs_conftest
from tests.claims import claim_job

project, spec, submit = jobs_conftest.project, jobs_conftest.spec, jobs_conftest.submit
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@contextmanager
def scraped_api(settings: Settings, database: Database) -> Iterator[tuple[str, Callable[[], Samples]]]:
    """A running API and what scrapes its metrics port."""
    app = create_app(settings.model_copy(update={"metrics_port": 0}), database)
    with serving(settings, database, app) as url:
        address = f"http://127.0.0.1:{app.state.metrics_port}/metrics"
        yield url, lambda: read(httpx.get(address).raise_for_status().text)


def read(page: str) -> Samples:
    families = text_string_to_metric_families(page)
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def of(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"neusemslice_{name}", frozenset(labels.items())))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_metrics, "KEPT_S", 0.0)


def test_two_apis_show_the_same_and_it_is_what_the_rows_say(
    database: Database, settings: Settings, submit: Callable[[], str]
) -> None:
    ids = [submit() for _ in range(4)]
    with database.transaction() as session:
        for number, job_id in enumerate(ids[:3]):
            held = claim_job(session, job_id, owner="own_1", lease_s=-1 if number == 2 else 60)
            if number == 0:
                completion.fail(session, held, problem("out_of_memory", "No."))
            elif number == 1:
                leases.give_back(session, held, reason="process_died", refund=False)
        gpu = {
            "uuid": "GPU-1",
            "name": "H100",
            "memory_used_bytes": 5,
            "memory_total_bytes": 80,
            "utilization": None,
        }
        for worker_id in ("own_1", "own_2"):
            worker = Worker(worker_id, "host-1", 1, ("compute",), "cuda:0", "0.1.0", beat_s=5.0)
            beat(session, worker, gpus=[gpu])
    with scraped_api(settings, database) as (_, first), scraped_api(settings, database) as (_, second):
        one, other = first(), second()
    mine = {key: value for key, value in one.items() if "job" in key[0] or "gpu" in key[0]}
    assert mine == {key: other[key] for key in mine}
    place = {"queue": "compute", "kind": "slice"}
    assert of(one, "jobs", **place, status="queued") == 2
    assert of(one, "jobs", **place, status="running") == 1
    assert of(one, "jobs_submitted_total", **place) == 4
    assert of(one, "job_attempts_total", **place) == 3
    assert of(one, "jobs_ended_total", **place, status="failed") == 1
    assert of(one, "job_failures_total", **place, code="out_of_memory") == 1
    assert of(one, "job_returns_total", **place, reason="process_died") == 1
    assert of(one, "job_wait_seconds_count", **place) == 3
    assert of(one, "job_wait_seconds_bucket", **place, le="+Inf") == 3
    assert of(one, "job_run_seconds_count", **place, status="failed") == 1
    assert (of(one, "workers", queue="compute"), of(one, "workers", queue="inspect")) == (2, 0)
    assert of(one, "leases_overdue") == 1
    assert (of(one, "queue_oldest_wait_seconds", queue="compute") or 0) > 0
    assert (of(one, "outbox_oldest_seconds") or 0) > 0
    assert of(one, "gpu_memory_used_bytes", host="host-1", uuid="GPU-1", model="H100") == 5
    assert not [key for key in one if "gpu_utilization" in key[0]]
    assert (of(one, "store_free_bytes") or 0) > 0


def test_requests_are_counted_by_route_and_never_by_path(database: Database, settings: Settings) -> None:
    with database.transaction() as session:
        key = create_key(session, project="p", name="")
    with scraped_api(settings, database) as (url, scrape), httpx.Client(base_url=url) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        for number in range(3):
            client.get(f"/v1/jobs/job_{number:026}")
            client.get(f"/nowhere/{number}")
            client.request("PROPFIND", "/v1/jobs")
        client.get("/v1/jobs/job_" + "0" * 26, params={"wait": 1})
        httpx.get(f"{url}/v1/jobs")
        samples = scrape()
        assert httpx.get(f"{url}/metrics").status_code == 404
    requests = {key: value for key, value in samples.items() if key[0] == "neusemslice_http_requests_total"}
    known = {"method": "GET", "route": "/v1/jobs/{job_id}"}
    assert of(samples, "http_requests_total", **known, status="404") == 4
    assert of(samples, "http_request_seconds_count", **known) == 3
    assert of(samples, "http_requests_total", method="GET", route="none", status="404") == 3
    assert of(samples, "http_requests_total", method="GET", route="none", status="401") == 1
    assert {dict(labels)["method"] for _, labels in requests} == {"GET", "other"}


def test_without_a_database_the_metrics_say_so(tmp_path: Path) -> None:
    database = Database("postgresql://postgres@127.0.0.1:1/postgres")
    with scraped_api(Settings(data_dir=tmp_path), database) as (url, scrape):
        httpx.get(f"{url}/livez")
        samples = scrape()
    assert of(samples, "database_up") == 0
    assert of(samples, "http_requests_total", method="GET", route="/livez", status="200") == 1
    assert not [key for key in samples if key[0].startswith(("neusemslice_job", "neusemslice_worker"))]
    database.dispose()


def test_a_scrape_does_not_read_the_jobs_that_have_ended(database: Database, submit: Callable[[], str]) -> None:
    submit()
    ended = """
        INSERT INTO jobs (id, project_id, kind, queue, spec, metadata, status, attempt, attempt_limit, fence,
                          cancel_requested, event_count)
        SELECT 'job_' || number, project_id, kind, queue, spec, metadata, 'succeeded', 1, 3, 1, false, 0
        FROM jobs, generate_series(1, 5000) number
    """
    with database.engine.begin() as connection:
        connection.execute(text(ended))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE jobs"))
        query = figures._jobs_under_way().compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
        plan = "\n".join(connection.execute(text(f"EXPLAIN {query}")).scalars())
    assert "Seq Scan on jobs" not in plan, plan
    assert plan.count("ix_jobs_queued") >= 1
    assert plan.count("ix_jobs_running") >= 1
