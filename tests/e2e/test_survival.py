"""Real processes killed with real signals: every submitted job ends once, with one set of artifacts."""

import json
import os
import signal
import time
from pathlib import Path

import psutil

from neusemslice_cli.client import Client
from tests.e2e.conftest import Service, long_job, run_until


def assert_ended_well_exactly_once(client: Client, job: dict) -> None:
    events = client.get(job["links"]["events"], limit=500)["data"]
    ends = [event for event in events if event["data"].get("status") == "succeeded"]
    names = [artifact["name"] for artifact in job["artifacts"]]
    assert job["status"] == "succeeded", job["error"]
    assert len(ends) == 1
    assert sorted(names) == ["report.json", "slice.safetensors"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


def wait_gone(processes: list[psutil.Process], timeout_s: float) -> None:
    gone, alive = psutil.wait_procs(processes, timeout=timeout_s)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE], (gone, alive)


def test_kill_9_of_the_jobs_process(own_service: Service, network_file: Path, long_dataset_file: Path) -> None:
    with own_service.client() as client:
        job = run_until(client, client.submit(long_job(own_service, client, network_file, long_dataset_file)), 0.05)
        (runner,) = own_service.runners()
        runner.kill()
        job = client.wait(job)
        assert job["attempt"] == 2
        assert "process_died" in [event["data"].get("reason") for event in job["transitions"]]
        assert_ended_well_exactly_once(client, job)


def test_an_analysis_is_not_repeated_after_kill_9(
    own_service: Service, network_file: Path, long_dataset_file: Path
) -> None:
    sweep = [number / 100 for number in range(1, 101)]
    with own_service.client() as client:
        job = long_job(own_service, client, network_file, long_dataset_file) | {
            "batch_size": 8,
            "sweep": sweep,
        }
        job = run_until(client, client.submit(job), 0.76)
        assert job["progress"]["stage"] == "evaluate"
        (runner,) = own_service.runners()
        runner.kill()
        job = client.wait(job)
        assert_ended_well_exactly_once(client, job)
        events = client.get(job["links"]["events"], limit=500)["data"]
    again = next(
        event["seq"] for event in events if event["data"].items() >= {"status": "running", "attempt": 2}.items()
    )
    assert {event["data"]["stage"] for event in events if event["type"] == "progress" and event["seq"] > again} <= {
        "load",
        "evaluate",
    }
    assert job["result"]["analysis"] == "computed"
    assert not (own_service.data_dir / "work" / job["id"]).exists()


def test_kill_9_of_the_dispatcher(own_service: Service, network_file: Path, long_dataset_file: Path) -> None:
    with own_service.client() as client, own_service.http() as http:
        job = run_until(client, client.submit(long_job(own_service, client, network_file, long_dataset_file)), 0.05)
        runners = own_service.runners()
        (dispatcher,) = own_service.processes("neusemslice_cli.main", "worker", "--parent")
        dispatcher.kill()
        wait_gone(runners, 2)
        job = client.wait(job)
        assert job["attempt"] == 2
        assert_ended_well_exactly_once(client, job)
        printed = http.get(f"{job['links']['self']}/logs", params={"attempt": 1}).text.splitlines()
        assert {(json.loads(line)["job_id"], json.loads(line)["attempt"]) for line in printed} == {(job["id"], 1)}


def test_kill_9_of_the_whole_server_with_its_own_postgres(
    tmp_path: Path, network_file: Path, long_dataset_file: Path
) -> None:
    service = Service(tmp_path / "data").start()
    try:
        with service.client() as client:
            job = run_until(client, client.submit(long_job(service, client, network_file, long_dataset_file)), 0.05)
        mine = service.processes("worker.runner") + service.processes("neusemslice_cli.main", "--parent")
        service.kill()
        wait_gone(mine, 2)
        service.start()
        with service.client() as client:
            job = client.wait(client.get(job["links"]["self"]))
            assert_ended_well_exactly_once(client, job)
        service.stop()
        assert service.processes() == []
    finally:
        service.stop()


def test_sigterm_gives_the_job_back_and_the_next_start_finishes_it(
    own_service: Service, network_file: Path, long_dataset_file: Path
) -> None:
    with own_service.client() as client:
        job = run_until(client, client.submit(long_job(own_service, client, network_file, long_dataset_file)), 0.05)
    own_service.stop()
    assert own_service.processes() == []
    own_service.start()
    with own_service.client() as client:
        job = client.wait(client.get(job["links"]["self"]))
        assert job["attempt"] == 1
        assert_ended_well_exactly_once(client, job)


def test_a_paused_supervisor_loses_its_lease_and_its_late_end_is_rejected(
    own_service: Service, network_file: Path, long_dataset_file: Path
) -> None:
    """The dispatcher is stopped past its lease; a second one takes over; the first wakes up and must change nothing."""
    with own_service.client() as client:
        job = run_until(client, client.submit(long_job(own_service, client, network_file, long_dataset_file)), 0.05)
        (dispatcher,) = own_service.processes("neusemslice_cli.main", "worker", "--parent")
        dispatcher.send_signal(signal.SIGSTOP)
        second = Service(own_service.data_dir.parent / "second", own_service.extra)
        second.extra = own_service.extra | {"NEUSEMSLICE_DATA_DIR": str(own_service.data_dir)}
        try:
            second.start("--data-dir", str(own_service.data_dir))
            time.sleep(1)
            deadline = time.monotonic() + 20
            while job["attempt"] < 2 and time.monotonic() < deadline:
                job = client.get(job["links"]["self"], wait=1)
            os.kill(dispatcher.pid, signal.SIGCONT)
            job = client.wait(job)
            assert job["attempt"] == 2
            assert_ended_well_exactly_once(client, job)
        finally:
            second.stop()
    assert "job.lease_lost" in own_service.log


def test_cancel_ends_a_running_job_within_two_seconds(
    own_service: Service, network_file: Path, long_dataset_file: Path
) -> None:
    with own_service.client() as client, own_service.http() as http:
        job = run_until(client, client.submit(long_job(own_service, client, network_file, long_dataset_file)), 0.02)
        (runner,) = own_service.runners()
        started = time.monotonic()
        assert http.post(job["links"]["cancel"]).json()["cancel_requested"] is True
        job = client.wait(client.get(job["links"]["self"]))
        took = time.monotonic() - started
        assert (job["status"], job["artifacts"], job["result"]) == ("cancelled", [], None)
        assert took < 2
        wait_gone([runner], 0.5)
        assert own_service.runners() == []
        assert list((own_service.data_dir / "work").rglob("order.json")) == []
        assert http.post(job["links"]["retry"]).status_code == 202
        http.post(job["links"]["cancel"])
        assert client.wait(client.get(job["links"]["self"]))["status"] == "cancelled"


def test_a_job_whose_process_always_dies_fails_with_the_reason(
    own_service: Service, network_file: Path, long_dataset_file: Path
) -> None:
    with own_service.client() as client:
        job = client.submit(long_job(own_service, client, network_file, long_dataset_file))
        deadline = time.monotonic() + 60
        while job["status"] in ("queued", "running") and time.monotonic() < deadline:
            for runner in own_service.runners():
                runner.kill()
            job = client.get(job["links"]["self"], wait=0.3)
        assert job["status"] == "failed"
        assert job["attempt"] == 3
        assert job["error"]["code"] == "process_died"
        assert "SIGKILL" in job["error"]["detail"]
        assert job["error"]["retryable"] is True
