"""A training that is killed between two epochs goes on from its checkpoint and ends with the very same weights."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from neusemslice_cli.client import Client
from tests.e2e.conftest import Service, run_until, upload

TRAINING = {"epochs": 60, "batch_size": 64, "optimizer": "sgd", "schedule": "cosine", "clip_norm": 1.0, "patience": 50}
A_THIRD = 0.4 + 0.2 / 3
"""Of the job's progress: its stages are load, attack, train, reattack and evaluate."""


@pytest.fixture(scope="module")
def spec(battered: Service, network_file: Path, long_dataset_file: Path) -> dict[str, Any]:
    """A job that trains for some seconds."""
    battered.start()
    with battered.client() as client:
        both = upload(client, network_file, long_dataset_file)
    return {"kind": "readapt", **both, "method": "full", "attack": {}, "samples": 1500, "training": TRAINING}


@pytest.fixture(scope="module")
def undisturbed(battered: Service, spec: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the weights that the job ends with."""
    with battered.client() as client:
        return weights_of(client, client.wait(client.submit(spec)), tmp_path_factory.mktemp("undisturbed"))


def weights_of(client: Client, job: dict[str, Any], folder: Path) -> str:
    assert job["status"] == "succeeded", job["error"]
    url = f"/v1/models/{job['result']['model_id']}/content"
    digest = hashlib.sha256()
    with safe_open(client.download(url, folder / "checkpoint.safetensors"), framework="np") as file:
        for name in sorted(file.keys()):
            digest.update(name.encode() + file.get_tensor(name).tobytes())
    return digest.hexdigest()


def kill_the_process(service: Service) -> None:
    (runner,) = service.runners()
    runner.kill()


def kill_the_supervisor(service: Service) -> None:
    (dispatcher,) = service.processes("neusemslice_cli.main", "worker", "--parent")
    dispatcher.kill()


def drain(service: Service) -> None:
    service.stop()
    assert service.processes() == []
    service.start()


@pytest.mark.parametrize(
    ("disturb", "attempt"),
    [(kill_the_process, 2), (kill_the_supervisor, 2), (drain, 1)],
    ids=["SIGKILL of the process", "SIGKILL of its supervisor", "SIGTERM of the service"],
)
def test_a_disturbed_training_ends_as_an_undisturbed_one(
    own_service: Service,
    spec: dict[str, Any],
    undisturbed: str,
    disturb: Callable[[Service], None],
    attempt: int,
    tmp_path: Path,
) -> None:
    with own_service.client() as client:
        job = run_until(client, client.submit(spec), A_THIRD)
    assert job["progress"]["stage"] == "train"
    disturb(own_service)
    with own_service.client() as client:
        job = client.wait(client.get(job["links"]["self"]))
        assert weights_of(client, job, tmp_path) == undisturbed
        events = client.get(job["links"]["events"], limit=500)["data"]
    assert job["attempt"] == attempt
    assert [event["data"].get("status") for event in events].count("succeeded") == 1
    assert sorted(item["name"] for item in job["artifacts"]) == ["checkpoint.safetensors", "report.json"]
    starts = [event["seq"] for event in events if event["data"].get("status") == "running"]
    progress = [event for event in events if event["type"] == "progress" and event["data"]["stage"] == "train"]
    first_again = next(event["data"] for event in progress if event["seq"] > starts[-1])
    assert len(starts) == 2
    assert first_again["done"] >= first_again["total"] / 4
    assert not (own_service.data_dir / "work" / job["id"]).exists()
