"""Upload, slice, restructure, download, reload: the whole job through the real service."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from neusemslice import ModelSlice, load_checkpoint
from neusemslice_cli.answers import ServiceAnswerError
from tests.e2e.conftest import Service, upload


@pytest.fixture(scope="module")
def story(service: Service, network_file: Path, dataset_file: Path) -> dict[str, object]:
    """A slice job and a restructure job on its slice."""
    with service.client() as client:
        both = upload(client, network_file, dataset_file)
        stages: list[str] = []
        fractions: list[float] = []

        def watch(job: dict[str, object]) -> None:
            progress = job["progress"]
            if isinstance(progress, dict):
                stages.append(progress["stage"])
                fractions.append(progress["fraction"])

        slicing = {"threshold": 0.9, "samples_per_category": 64}
        job = {"kind": "slice", **both, "slicing": slicing, "sweep": [0.7, 0.99], "seed": 5}
        sliced = client.wait(client.submit(job), on_change=watch)
        assert sliced["status"] == "succeeded", sliced["error"]
        slice_id = next(item["id"] for item in sliced["artifacts"] if item["name"] == "slice.safetensors")
        job = {"kind": "restructure", **both, "slice_id": slice_id, "name": "small"}
        restructured = client.wait(client.submit(job))
        assert restructured["status"] == "succeeded", restructured["error"]
    return {"sliced": sliced, "restructured": restructured, "stages": stages, "fractions": fractions, **both}


def test_the_slice_comes_with_its_sweep(story: dict) -> None:
    result = story["sliced"]["result"]
    removed = [point["compression_rate"] for point in result["sweep"]]
    assert [point["cut"] for point in result["sweep"]] == [0.7, 0.99]
    assert removed[0] > result["at_cut"]["compression_rate"] > removed[1] >= 0
    assert result["evaluated_on"] == "test"
    assert story["sliced"]["seed"] == 5
    assert set(story["sliced"]["versions"]) == {"neusemslice", "torch", "numpy", "python"}


def test_progress_reaches_the_client_and_never_moves_back(story: dict) -> None:
    assert story["stages"]
    assert story["fractions"] == sorted(story["fractions"])


def test_masks_can_be_downloaded_and_cut_again(service: Service, story: dict, tmp_path: Path) -> None:
    with service.client() as client:
        artifact = next(item for item in story["sliced"]["artifacts"] if item["name"] == "slice.safetensors")
        found = ModelSlice.load(client.download(artifact["links"]["content"], tmp_path / "slice.safetensors"))
        report = next(item for item in story["sliced"]["artifacts"] if item["name"] == "report.json")
        written = json.loads(client.download(report["links"]["content"], tmp_path / "report.json").read_text())
    kept = sum(int(keep.sum()) for keep in found.merged().values())
    more = sum(int(keep.sum()) for keep in found.at(0.999).merged().values())
    assert 0 < kept < more
    assert written["sweep"] == story["sliced"]["result"]["sweep"]


def test_the_checkpoint_reloads_in_a_fresh_process_as_measured(
    service: Service, story: dict, dataset_file: Path, tmp_path: Path
) -> None:
    result = story["restructured"]["result"]
    with service.client() as client:
        model = client.get(f"/v1/models/{result['model_id']}")
        path = client.download(model["links"]["content"], tmp_path / "small.safetensors")
    code = (
        "import sys, numpy, torch; from neusemslice import load_checkpoint; "
        "net = load_checkpoint(sys.argv[1]); data = numpy.load(sys.argv[2]); "
        "x = torch.from_numpy(data['x_test']).float()[:, None] / 255; "
        "print((net(x).argmax(1).numpy() == data['y_test']).mean(), sum(p.numel() for p in net.parameters()))"
    )
    run = [sys.executable, "-c", code, str(path), str(dataset_file)]
    accuracy, parameters = subprocess.run(run, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.split()
    assert float(accuracy) == pytest.approx(result["after"]["accuracy"])
    assert int(parameters) == result["after"]["parameters"] < result["before"]["parameters"]
    assert path.stat().st_size == result["after"]["file_bytes"] < result["before"]["file_bytes"]


def test_the_produced_model_knows_its_origin_and_can_be_sliced_again(service: Service, story: dict) -> None:
    with service.client() as client:
        model = client.get(f"/v1/models/{story['restructured']['result']['model_id']}")
        assert (model["name"], model["status"], model["parent_model_id"]) == ("small", "ready", story["model_id"])
        assert model["produced_by_job_id"] == story["restructured"]["id"]
        both = {"model_id": model["id"], "dataset_id": story["dataset_id"]}
        sliced = client.wait(client.submit({"kind": "slice", **both, "slicing": {"metric": "avg"}}))
        assert sliced["status"] == "succeeded", sliced["error"]
        slicing = {"strategy": "categorywise", "metric": "avg", "fraction": 0.5}
        again = client.wait(client.submit({"kind": "restructure", **both, "slicing": slicing}))
        assert again["status"] == "succeeded", again["error"]
        assert [job["result"]["analysis"] for job in (story["sliced"], sliced, again)] == [
            "computed",
            "computed",
            "cached",
        ]
        assert again["result"]["after"]["parameters"] < again["result"]["before"]["parameters"]
        assert {item["name"] for item in again["artifacts"]} == {
            "report.json",
            "slice.safetensors",
            "checkpoint.safetensors",
        }
        line = client.get(f"/v1/models/{again['result']['model_id']}")["lineage"]
    assert [(model["name"], model["produced_by"] and model["produced_by"]["job_id"]) for model in line] == [
        ("small (restructured)", again["id"]),
        ("small", story["restructured"]["id"]),
        ("mlp", None),
    ]
    slice_id = next(item["id"] for item in story["sliced"]["artifacts"] if item["name"] == "slice.safetensors")
    assert line[1]["produced_by"]["inputs"] == {"dataset_id": story["dataset_id"], "slice_id": slice_id}


def test_a_comparison_ends_in_a_report_that_is_saved_not_shown(service: Service, story: dict, tmp_path: Path) -> None:
    both = {name: story[name] for name in ("model_id", "dataset_id")}
    job = {"kind": "compare", **both, "metrics": ["avg"], "compressions": [0.3, 0.6], "pilot": False}
    with service.client() as client:
        compared = client.wait(client.submit(job))
        assert compared["status"] == "succeeded", compared["error"]
        artifacts = {item["name"]: item for item in compared["artifacts"]}
        url = artifacts["report.html"]["links"]["content"]
        report = client.download(url, tmp_path / "report.html").read_text()
    assert {name: item["media_type"] for name, item in artifacts.items()} == {
        "comparison.json": "application/json",
        "comparison.csv": "text/csv",
        "report.html": "text/html",
    }
    assert compared["result"]["summary"] in report
    assert compared["result"]["winners"].keys() == {"avg"}
    assert len(compared["result"]["areas"]) == 4


def test_a_slice_of_another_model_is_refused(service: Service, story: dict) -> None:
    with service.client() as client:
        slice_id = next(i["id"] for i in story["sliced"]["artifacts"] if i["name"] == "slice.safetensors")
        small = story["restructured"]["result"]["model_id"]
        with pytest.raises(ServiceAnswerError, match="does not belong"):
            client.submit({"kind": "restructure", "model_id": small, "slice_id": slice_id})


def test_the_uploaded_model_downloads_as_a_loadable_checkpoint(
    service: Service, story: dict, network_file: Path, tmp_path: Path
) -> None:
    with service.client() as client:
        path = client.download(f"/v1/models/{story['model_id']}/content", tmp_path / "same.safetensors")
    from safetensors.torch import load_file

    original, images = load_file(network_file), torch.from_numpy(np.eye(64, dtype="float32")).reshape(64, 1, 8, 8)
    hidden = images.flatten(1)
    for index in (1, 3, 5):
        hidden = nn_linear(hidden, original, index)
    torch.testing.assert_close(load_checkpoint(path)(images), hidden, rtol=0, atol=1e-6)


def nn_linear(values: torch.Tensor, weights: dict[str, torch.Tensor], index: int) -> torch.Tensor:
    values = values @ weights[f"{index}.weight"].T + weights[f"{index}.bias"]
    return values if index == 5 else values.relu()
