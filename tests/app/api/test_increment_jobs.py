"""Submitting `increment` jobs over real HTTP."""

import httpx
import pytest

from app.artifacts.orm import ArtifactRow, ModelRow
from app.ids import new_id
from tests.app.api.conftest import Api
from tests.app.api.test_readapt_jobs import new_dataset, stored

Job = dict[str, object]
OTHER = "ds_" + "0" * 26


@pytest.fixture
def increment(api: Api, job: Job) -> Job:
    return job | {"kind": "increment", "new_dataset_id": new_dataset(api, {"categories": 4})}


def test_it_shows_what_it_will_do_and_can_be_sent_again(client: httpx.Client, increment: Job) -> None:
    shown = client.post("/v1/jobs", json=increment).json()
    config = shown["config"]
    assert shown["status"] == "queued"
    assert (config["method"], config["reconstruct"], config["decision_directions"]) == ("isolated", "least_squares", 64)
    again = client.post("/v1/jobs", json={"kind": "increment", **config})
    assert (again.status_code, again.json()["config"]) == (202, config)
    assert len(client.get("/v1/jobs?kind=increment").json()["data"]) == 2


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"method": "random"}, "/method", "'isolated'"),
        ({"method": "replay", "slicing": {}}, "/slicing", "freezes none"),
        ({"method": "global", "slicing": {}}, "/slicing", "not that of method='global'"),
        ({"slicing": {"max_accuracy_drop": 0.1}}, "/slicing", "validation data"),
        ({"replay_fraction": 0.1}, "/replay_fraction", "no parameter of method='isolated'"),
        ({"method": "replay", "replay_fraction": 0}, "/replay_fraction", "greater than 0"),
        ({"decision_directions": 0}, "/decision_directions", "greater than or equal to 1"),
        ({"reconstruct": "magic"}, "/reconstruct", "'least_squares'"),
        ({"dataset_id": None}, "/dataset_id", "or the memory"),
        ({"dataset_id": None, "labels": [1]}, "/labels", "not given"),
        ({"new_labels": [1, 1]}, "/new_labels", "twice"),
        ({"new_labels": []}, "/new_labels", "at least 1"),
        ({"training": {"patience": 1}}, "/training", "patience"),
    ],
)
def test_what_cannot_be_done_is_a_422_that_points_at_it(
    client: httpx.Client, increment: Job, change: Job, pointer: str, words: str
) -> None:
    answer = client.post("/v1/jobs", json=increment | change)
    problem = answer.json()
    assert answer.status_code == 422
    assert problem["errors"][0]["pointer"] == pointer
    assert words in problem["errors"][0]["detail"]


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"new_labels": [0, 4]}, "/new_labels", "not [4]"),
        ({"labels": [0, 1]}, "/labels", "the model has 10 outputs"),
        ({"labels": [*range(9), 10]}, "/labels", "not [10]"),
    ],
)
def test_labels_have_to_be_those_of_the_datasets(
    client: httpx.Client, increment: Job, change: Job, pointer: str, words: str
) -> None:
    problem = client.post("/v1/jobs", json=increment | change).json()
    assert (problem["status"], problem["errors"][0]["pointer"]) == (422, pointer)
    assert words in problem["detail"]


def test_a_new_dataset_of_another_shape_or_that_does_not_exist(api: Api, client: httpx.Client, increment: Job) -> None:
    other = new_dataset(api, {"input_shape": [3, 8, 8]})
    problem = client.post("/v1/jobs", json=increment | {"new_dataset_id": other}).json()
    assert (problem["status"], problem["errors"][0]["pointer"]) == (422, "/new_dataset_id")
    assert client.post("/v1/jobs", json=increment | {"new_dataset_id": OTHER}).status_code == 404


@pytest.mark.parametrize(
    ("labels", "new_labels", "words"),
    [
        (None, None, "do not share it out"),
        (list(range(10)), [9], r"have its labels [9]"),
        (list(range(10)), None, "do not share it out"),
    ],
)
def test_one_dataset_for_both_tasks_has_to_be_shared_out(
    client: httpx.Client, increment: Job, labels: object, new_labels: object, words: str
) -> None:
    same = {"new_dataset_id": increment["dataset_id"], "labels": labels, "new_labels": new_labels}
    problem = client.post("/v1/jobs", json=increment | same).json()
    assert (problem["status"], problem["errors"][0]["pointer"]) == (422, "/new_labels")
    assert words in problem["detail"]


def test_a_memory_has_to_be_that_of_the_model(api: Api, client: httpx.Client, increment: Job) -> None:
    """Of the job that produced it, and of the same method."""
    maker = client.post("/v1/jobs", json=increment).json()["id"]
    stranger = client.post("/v1/jobs", json=increment).json()["id"]
    blob, memories = stored(api), {}
    with api.database.transaction() as session:
        session.get_one(ModelRow, increment["model_id"]).produced_by_job_id = maker
        for job_id, name in ((maker, "memory.safetensors"), (maker, "report.json"), (stranger, "memory.safetensors")):
            row = ArtifactRow(
                id=new_id("art"),
                project_id=api.project,
                job_id=job_id,
                fence=1,
                name=name,
                media_type="application/octet-stream",
                digest=blob.digest,
                size_bytes=blob.size_bytes,
            )
            session.add(row)
            memories[job_id, name] = row.id
    go_on = increment | {"dataset_id": None, "memory_id": memories[maker, "memory.safetensors"]}
    assert client.post("/v1/jobs", json=go_on).status_code == 202
    for key in ((maker, "report.json"), (stranger, "memory.safetensors")):
        problem = client.post("/v1/jobs", json=go_on | {"memory_id": memories[key]}).json()
        assert (problem["status"], problem["errors"][0]["pointer"]) == (422, "/memory_id")
    problem = client.post("/v1/jobs", json=go_on | {"method": "global"}).json()
    assert (problem["status"], problem["errors"][0]["pointer"]) == (422, "/method")
