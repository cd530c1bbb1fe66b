"""What an operator sees of a real deployment: two APIs, a worker that is killed, signals, logs, metrics, a trace."""

import io
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, select

from app.db import Database
from app.jobs.orm import JobEventRow, JobRow
from tests.e2e.conftest import ARCHITECTURE, Service

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """An OTLP/HTTP receiver."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def wait_for(self, names: set[str]) -> dict[str, Any]:
        assert until(lambda: names <= {span.name for span in self.spans}), [span.name for span in self.spans]
        return {span.name: span for span in self.spans if span.trace_id.hex() == TRACE}


def until(holds: Callable[[], bool], timeout_s: float = 60) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def services(
    tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[], str], collector: Collector
) -> Iterator[tuple[Service, Service]]:
    """An API with a worker, and a second API on the same database and data."""
    folder, url = tmp_path_factory.mktemp("operations"), new_database()
    both: list[Service] = []
    for name in ("first", "second"):
        extra = {
            "DATABASE_URL": url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "NEUSEMSLICE_METRICS_PORT": str(free_port()),
            "NEUSEMSLICE_LEASE_S": "8",
            "NEUSEMSLICE_WARM_START": "false",  # a job that loads torch can be caught at work
            "NEUSEMSLICE_DRAIN_NOTICE_S": "1",
            "NEUSEMSLICE_DRAIN_GRACE_S": "20",
        }
        arguments = ("--api-only", "--data-dir", str(folder / "first")) if both else ()
        both.append(Service(folder / name, extra).start(*arguments))
    yield both[0], both[1]
    for service in reversed(both):
        service.stop()


@contextmanager
def client_of(services: tuple[Service, Service], which: int) -> Iterator[httpx.Client]:
    key = (services[0].data_dir / "api-key").read_text().strip()
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=services[which].url, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture
def database(services: tuple[Service, Service]) -> Iterator[Database]:
    database = Database(services[0].extra["DATABASE_URL"])
    yield database
    database.dispose()


def metrics(service: Service) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    page = httpx.get(f"http://127.0.0.1:{service.extra['NEUSEMSLICE_METRICS_PORT']}/metrics").text
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def lines(service: Service, event: str, **fields: object) -> list[dict[str, Any]]:
    """The log's lines of an event, all of which are JSON."""
    found = [json.loads(line) for line in service.log.splitlines()]
    return [line for line in found if line["event"] == event and fields.items() <= line.items()]


def test_one_trace_and_one_request_id_lead_from_the_request_to_its_jobs_stages(
    services: tuple[Service, Service], collector: Collector, database: Database
) -> None:
    stream = io.BytesIO()
    np.savez(stream, x_train=np.zeros((8, 4, 4), dtype=np.uint8), y_train=np.arange(8) % 2)
    headers = {"X-Request-ID": "nightly-17", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    with client_of(services, 0) as client:
        dataset = client.post("/v1/datasets", files={"file": stream.getvalue()}, data={"spec": "{}"}, headers=headers)
        ready = client.get(f"/v1/datasets/{dataset.json()['id']}", params={"wait": 60}).json()
    assert ready["status"] == "ready", ready
    spans = collector.wait_for({"POST /v1/datasets", "job.run", "import"})
    request, run, stage = (spans[name] for name in ("POST /v1/datasets", "job.run", "import"))
    assert request.parent_span_id.hex() == PARENT
    assert run.parent_span_id == request.span_id
    assert stage.parent_span_id == run.span_id
    assert run.start_time_unix_nano <= stage.start_time_unix_nano <= stage.end_time_unix_nano
    assert stage.end_time_unix_nano <= run.end_time_unix_nano
    with database.transaction() as session:
        (job_id,) = session.scalars(select(JobRow.id).where(JobRow.request_id == "nightly-17"))
    said = {"job_id": job_id, "request_id": "nightly-17", "trace_id": TRACE}
    assert lines(services[0], "job.started", attempt=1, **said)
    assert len(lines(services[0], "job.ended", **said)) == 1
    (access,) = lines(services[0], "request", request_id="nightly-17")
    assert (access["status"], access["method"]) == (202, "POST")
    key = (services[0].data_dir / "api-key").read_text().strip()
    assert key.split("_")[2] not in services[0].log


def test_after_kill_9_of_a_worker_both_apis_still_count_what_the_rows_say(
    services: tuple[Service, Service], database: Database, network_file: Path
) -> None:
    with client_of(services, 0) as client, network_file.open("rb") as file:
        form = {"spec": json.dumps(ARCHITECTURE)}
        model = client.post("/v1/models", files={"file": file}, data=form).json()["id"]
        assert until(lambda: len(services[0].runners()) == 1)
        (runner,) = services[0].runners()
        runner.suspend()
        (dispatcher,) = services[0].processes("neusemslice_cli.main", "worker", "--parent")
        dispatcher.kill()
        assert client.get(f"/v1/models/{model}", params={"wait": 60}).json()["status"] == "ready"
    with suppress(psutil.NoSuchProcess):
        runner.resume()  # one that was stopped before it could bind itself to its supervisor finds it gone
    psutil.wait_procs([runner], timeout=10)
    assert not runner.is_running()
    time.sleep(2.1)
    first, second = metrics(services[0]), metrics(services[1])
    shown = {key: value for key, value in first.items() if key[0].startswith(("neusemslice_job", "neusemslice_lease"))}
    shown = {key: value for key, value in shown.items() if not key[0].endswith("_created")}
    assert shown == {key: second[key] for key in shown}

    def total(name: str, **labels: str) -> float:
        wanted = labels.items()
        return sum(value for (found, has), value in shown.items() if found == f"neusemslice_{name}" and wanted <= has)

    with database.transaction() as session:
        jobs = session.scalar(select(func.count()).select_from(JobRow))
        succeeded = session.scalar(select(func.count()).where(JobRow.status == "succeeded"))
        of_status = select(func.count()).where(JobEventRow.type == "status")
        claims = session.scalar(of_status.where(JobEventRow.data["status"].astext == "running"))
        lost = session.scalar(of_status.where(JobEventRow.data["reason"].astext == "worker_lost"))
    assert jobs == succeeded
    assert (claims or 0) > (jobs or 0) > 0
    assert (lost or 0) > 0
    assert total("jobs_submitted_total") == jobs
    assert total("jobs_ended_total", status="succeeded") == succeeded == total("jobs_ended_total")
    assert total("job_attempts_total") == claims == total("job_wait_seconds_count")
    assert total("job_run_seconds_count") == succeeded
    assert total("leases_lost_total") == lost
    assert total("leases_overdue") == 0


def test_an_api_that_is_told_to_stop_says_so_and_ends_what_it_has_begun(
    services: tuple[Service, Service], database: Database
) -> None:
    job_id = "job_" + "9" * 26
    with database.transaction() as session:
        project = session.scalars(select(JobRow.project_id)).first()
        waiting = {"kind": "slice", "model_id": "mdl_" + "0" * 26, "dataset_id": "ds_" + "0" * 26}
        unattended = JobRow(
            id=job_id, project_id=project, kind="slice", queue="unattended", spec=waiting, attempt_limit=1
        )
        session.add(unattended)
    told: dict[str, Any] = {}

    def follow(name: str, ask: Callable[[httpx.Client], Any]) -> threading.Thread:
        def run() -> None:
            with client_of(services, 1) as client:
                told[name] = ask(client)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def upload(client: httpx.Client) -> int:
        def slowly() -> Iterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="spec"\r\n\r\n{}\r\n--x\r\n'
            yield b'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
            for _ in range(25):
                yield b"0" * 1000
                time.sleep(0.1)
            yield b"\r\n--x--\r\n"

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        return client.post("/v1/datasets", content=slowly(), headers=headers).status_code

    place, streaming = f"/v1/jobs/{job_id}", {"Accept": "text/event-stream"}
    threads = [
        follow("poll", lambda client: client.get(place, params={"wait": 50}).json()["status"]),
        follow("stream", lambda client: client.get(f"{place}/events", headers=streaming).text),
        follow("upload", upload),
    ]
    time.sleep(1.0)
    process = services[1].process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    assert until(lambda: httpx.get(f"{services[1].url}/readyz").status_code == 503, timeout_s=0.9)
    ready = httpx.get(f"{services[1].url}/readyz")
    assert (ready.json()["status"], ready.headers["connection"]) == ("draining", "close")
    for thread in threads[:2]:
        thread.join(10)
        assert not thread.is_alive()
    assert process.poll() is None
    assert process.wait(20) == 0
    threads[2].join(10)
    assert told == {"poll": "queued", "stream": "", "upload": 202}
    assert len(lines(services[1], "serve.draining")) == 1
