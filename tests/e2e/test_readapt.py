"""A model that is sliced, repaired against an attack, and repaired again: jobs that chain, through the real service."""

from pathlib import Path

import torch

from neusemslice import load_checkpoint
from tests.e2e.conftest import Service, upload


def test_a_repaired_model_is_a_model(service: Service, network_file: Path, dataset_file: Path, tmp_path: Path) -> None:
    slicing = {"threshold": 0.9, "samples_per_category": 64}
    attack = {"epsilons": [0.05], "value_range": [0, 255]}
    with service.client() as client:
        both = upload(client, network_file, dataset_file)
        sliced = client.wait(client.submit({"kind": "slice", **both, "slicing": slicing}))
        slice_id = next(item["id"] for item in sliced["artifacts"] if item["name"] == "slice.safetensors")
        job = {"kind": "readapt", **both, "attack": attack, "samples": 100, "training": {"epochs": 2}}
        by_slice = client.wait(client.submit(job | {"slice_id": slice_id, "name": "repaired"}))
        assert by_slice["status"] == "succeeded", by_slice["error"]
        anew = client.wait(client.submit(job | {"slicing": slicing}))
        assert anew["status"] == "succeeded", anew["error"]
        assert anew["result"]["analysis"] == "cached"
        told, again = (found["result"]["report"] for found in (by_slice, anew))
        assert told["accuracies"] == again["accuracies"]
        assert told["accuracies"]["retrained"] >= told["accuracies"]["original"]
        model = client.get(f"/v1/models/{by_slice['result']['model_id']}")
        assert (model["name"], model["parent_model_id"]) == ("repaired", both["model_id"])
        assert [own["model_id"] for own in model["lineage"]] == [model["id"], both["model_id"]]
        next_job = job | {"model_id": model["id"], "method": "full"}
        chained = client.wait(client.submit(next_job))
        assert chained["status"] == "succeeded", chained["error"]
        assert chained["result"]["report"]["training_parameter_ratio"] == 1
        path = client.download(model["links"]["content"], tmp_path / "repaired.safetensors")
    assert load_checkpoint(path)(torch.zeros(1, 1, 8, 8)).shape == (1, 4)
