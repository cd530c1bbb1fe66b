"""A model that learns one task after another: increments that chain, through the real service."""

from pathlib import Path

import torch

from neusemslice import IncrementMemory, TaskFree, load_checkpoint, trace
from tests.e2e.conftest import Service, upload


def test_a_model_learns_task_after_task(
    service: Service, network_file: Path, dataset_file: Path, tmp_path: Path
) -> None:
    """One dataset as what the model knows, and by its labels as two further tasks; model and memory are handed on."""
    with service.client() as client:
        both = upload(client, network_file, dataset_file)
        again = upload(client, network_file, dataset_file)
        job = {"kind": "increment", "slicing": {"strategy": "global", "metric": "avg", "fraction": 0.4}}
        job |= {"training": {"epochs": 1}, "new_dataset_id": again["dataset_id"], "decision_directions": 8}
        first = client.wait(client.submit(job | both | {"new_labels": [0, 1], "name": "six"}))
        assert first["status"] == "succeeded", first["error"]
        assert first["result"]["report"]["drift"] == 0
        model = client.get(f"/v1/models/{first['result']['model_id']}")
        assert (model["name"], model["parent_model_id"]) == ("six", both["model_id"])
        memory = next(item for item in first["artifacts"] if item["name"] == "memory.safetensors")
        go_on = {"model_id": model["id"], "memory_id": memory["id"], "new_labels": [2, 3]}
        second = client.wait(client.submit(job | go_on))
        assert second["status"] == "succeeded", second["error"]
        assert second["result"]["report"]["categories"] == [6, 8]
        last = client.get(f"/v1/models/{second['result']['model_id']}")
        assert [own["model_id"] for own in last["lineage"]] == [last["id"], model["id"], both["model_id"]]
        paths = [
            client.download(made["links"]["content"], tmp_path / f"{place}.safetensors")
            for place, made in enumerate((model, last))
        ]
        kept = next(item for item in second["artifacts"] if item["name"] == "memory.safetensors")
        found = client.download(f"/v1/artifacts/{kept['id']}/content", tmp_path / "memory.safetensors")
    inputs = torch.rand(16, 1, 8, 8)
    six, eight = (load_checkpoint(path) for path in paths)
    assert torch.equal(eight(inputs)[:, :6], six(inputs))
    decided = TaskFree(trace(eight, inputs), IncrementMemory.load(found))(inputs)
    assert decided.shape == (16,)
