"""Submitting `readapt` jobs over real HTTP."""

import json

import httpx
import pytest

from app.artifacts.catalog import Catalog, NewAsset, accept
from app.artifacts.orm import DatasetRow
from tests.app.api.conftest import FACTS, Api

Job = dict[str, object]


@pytest.fixture
def readapt(job: Job) -> Job:
    return job | {"kind": "readapt", "attack": {}}


def new_dataset(api: Api, facts: dict[str, object]) -> str:
    with api.database.transaction() as session:
        row = Catalog(session, api.project).add(DatasetRow, NewAsset("new", {}, {}), stored(api))
        accept(row, digest=stored(api).digest, size_bytes=1024, facts=FACTS | facts)
        return row.id


def stored(api: Api):
    source = api.settings.data_dir / "new"
    source.write_bytes(bytes(1024))
    return api.store.put_file(source)


def test_it_shows_what_it_will_do_and_can_be_sent_again(client: httpx.Client, readapt: Job) -> None:
    shown = client.post("/v1/jobs", json=readapt).json()
    config = shown["config"]
    assert shown["status"] == "queued"
    assert (config["method"], config["samples"], config["training"]["epochs"]) == ("semantic", 1000, 5)
    assert config["attack"] == {
        "method": "fgsm",
        "epsilons": [0.1],
        "norm": "inf",
        "steps": 10,
        "step": 0.25,
        "random_start": True,
        "value_range": None,
    }
    again = client.post("/v1/jobs", json={"kind": "readapt", **config})
    assert (again.status_code, again.json()["config"]) == (202, config)
    assert len(client.get("/v1/jobs?kind=readapt").json()["data"]) == 2


def test_a_number_too_large_for_a_float_is_pointed_at(client: httpx.Client, readapt: Job) -> None:
    body = json.dumps(readapt | {"attack": {"value_range": [0, "HUGE"]}}).replace('"HUGE"', "1e400")
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/attack/value_range/1")


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"attack": None}, "/attack", "neither of them given"),
        ({"new_dataset_id": "ds_" + "0" * 26}, "/attack", "both given"),
        ({"attack": {"epsilons": [8]}}, "/attack/epsilons", "out of range"),
        ({"attack": {"epsilons": [0]}}, "/attack/epsilons/0", "greater than 0"),
        ({"attack": {"epsilons": []}}, "/attack/epsilons", "at least 1"),
        ({"attack": {"method": "cw"}}, "/attack/method", "'fgsm'"),
        ({"attack": {"value_range": [255, 0]}}, "/attack/value_range", "no range"),
        ({"method": "random"}, "/method", "'semantic+deeparc'"),
        ({"method": "full", "slicing": {}}, "/slicing", "takes no slicing"),
        ({"method": "global", "slicing": {}}, "/slicing", "by strategy 'global'"),
        ({"deeparc_threshold": 0.9}, "/deeparc_threshold", "no parameter of method='semantic'"),
        ({"cut": 0.9}, "/cut", "there is no slice_id"),
        ({"slice_id": "art_" + "0" * 26, "slicing": {}}, "/slice_id", "slicing makes one"),
        ({"slice_id": "art_" + "0" * 26, "method": "full"}, "/slice_id", "trains everything"),
        ({"samples": 0}, "/samples", "greater than or equal to 1"),
        ({"training": {"learning_rate": 0}}, "/training/learning_rate", "greater than 0"),
        ({"training": {"epochs": 10**6}}, "/training/epochs", "less than or equal to 1000"),
        ({"training": {"optimizer": "lion"}}, "/training/optimizer", "'adamw'"),
        ({"dataset_id": None}, "/dataset_id", "valid string"),
    ],
)
def test_what_cannot_be_done_is_a_422_that_points_at_it(
    client: httpx.Client, readapt: Job, change: Job, pointer: str, words: str
) -> None:
    answer = client.post("/v1/jobs", json=readapt | change)
    problem = answer.json()
    assert answer.status_code == 422
    assert problem["errors"][0]["pointer"] == pointer
    assert words in problem["errors"][0]["detail"]


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        ({}, 202, ""),
        ({"input_shape": [3, 8, 8]}, 422, "takes shape [1, 8, 8]"),
        ({"class_names": ["cat"]}, 422, "categories are ['cat']"),
    ],
)
def test_new_samples_have_to_fit(
    api: Api, client: httpx.Client, readapt: Job, facts: dict[str, object], status: int, words: str
) -> None:
    job = readapt | {"attack": None, "new_dataset_id": new_dataset(api, facts)}
    answer = client.post("/v1/jobs", json=job)
    assert answer.status_code == status
    if status == 422:
        assert answer.json()["errors"][0]["pointer"] == "/new_dataset_id"
        assert words in answer.json()["detail"]


def test_new_samples_that_do_not_exist_are_a_404(client: httpx.Client, readapt: Job) -> None:
    job = readapt | {"attack": None, "new_dataset_id": "ds_" + "0" * 26}
    assert client.post("/v1/jobs", json=job).status_code == 404
