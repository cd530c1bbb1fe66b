"""Uploads and downloads over real HTTP, without a worker."""

import hashlib
import json

import httpx
import pytest
from sqlalchemy import select

from app.api import uploads
from app.artifacts.store import Blob
from app.jobs import completion
from app.jobs.completion import Output
from app.jobs.orm import JobRow
from tests.app.api.conftest import FACTS, Api
from tests.claims import claim_job

SPEC = json.dumps({"builder": "mlp", "kwargs": {"sizes": [64, 8, 10]}, "input_shape": [1, 8, 8]})
CONTENT = bytes(range(256)) * 4


def upload(client: httpx.Client, spec: str = SPEC, content: bytes = b"weights", **form: str) -> httpx.Response:
    data = {"spec": spec, **form}
    return client.post("/v1/models", data=data, files={"file": ("w.safetensors", content)})


class TestUpload:
    def test_is_processing_until_it_has_been_inspected(self, client: httpx.Client) -> None:
        answer = upload(client, name="mine", metadata='{"team": "a"}')
        model = answer.json()
        assert (answer.status_code, model["status"], model["name"]) == (202, "processing", "mine")
        assert model["metadata"] == {"team": "a"}
        assert model["architecture"] == json.loads(SPEC)
        assert client.get(answer.headers["location"]).json() == model
        assert client.get(model["links"]["content"]).status_code == 409

    def test_its_inspection_is_no_job_of_the_list(self, client: httpx.Client) -> None:
        upload(client)
        assert client.get("/v1/jobs").json()["data"] == []

    @pytest.mark.parametrize(
        ("spec", "pointer"),
        [
            ("not json", "/spec"),
            ("[]", "/spec"),
            ("{}", "/spec/builder"),
            ('{"builder": "mlp", "input_shape": [0]}', "/spec/input_shape/0"),
            ('{"builder": "mlp", "input_shape": []}', "/spec/input_shape"),
            ('{"builder": "mlp", "input_shape": [1], "code": "x"}', "/spec/code"),
            ('{"builder": 7, "input_shape": [1]}', "/spec/builder"),
        ],
    )
    def test_a_bad_architecture_is_a_422_that_points_at_it(self, client: httpx.Client, spec: str, pointer: str) -> None:
        answer = upload(client, spec)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == pointer

    @pytest.mark.parametrize("spec", ["not json", '{"kwargs": ' + "[" * 5000 + "]" * 5000 + "}"])
    def test_a_spec_that_cannot_be_read_comes_with_a_hint(self, client: httpx.Client, spec: str) -> None:
        problem = upload(client, spec).json()
        assert problem["errors"][0]["pointer"] == "/spec"
        assert "nested less than a hundred deep" in problem["hint"]

    def test_a_spec_over_the_limit_is_named_with_the_limit(
        self, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(uploads, "FIELD_BYTES_MAX", 1000)
        answer = upload(client, SPEC + " " * 1000)
        problem = answer.json()
        assert (answer.status_code, problem["errors"][0]["pointer"]) == (422, "/spec")
        assert "more than 1000 bytes" in problem["detail"]
        assert "fewer nodes" in problem["hint"]

    def test_an_empty_file_is_a_422(self, client: httpx.Client) -> None:
        answer = upload(client, content=b"")
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/file")

    def test_a_missing_file_is_a_422(self, client: httpx.Client) -> None:
        answer = client.post("/v1/models", data={"spec": SPEC})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/file")

    def test_a_file_over_the_limit_is_a_413(self, client: httpx.Client) -> None:
        answer = upload(client, content=b"x" * 300_000)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")

    def test_the_same_idempotency_key_makes_one_model(self, client: httpx.Client) -> None:
        client.headers["Idempotency-Key"] = "k"
        first, second = upload(client).json(), upload(client).json()
        assert first["id"] == second["id"]
        assert upload(client, content=b"other").status_code == 422

    @pytest.mark.parametrize("spec", ['{"format": "pickle"}', '{"preprocess": {"std": [0]}}', '{"preprocess": 1}'])
    def test_a_bad_dataset_spec_is_a_422(self, client: httpx.Client, spec: str) -> None:
        answer = client.post("/v1/datasets", data={"spec": spec}, files={"file": ("d.npz", b"data")})
        assert answer.status_code == 422


class TestDownload:
    def test_the_etag_is_the_sha256_and_saves_a_second_download(
        self, client: httpx.Client, job: dict[str, object]
    ) -> None:
        url = f"/v1/models/{job['model_id']}/content"
        answer = client.get(url)
        assert answer.content == CONTENT
        assert answer.headers["etag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
        again = client.get(url, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")

    @pytest.mark.parametrize(
        ("header", "status", "content"),
        [
            ("bytes=10-19", 206, CONTENT[10:20]),
            ("bytes=1000-", 206, CONTENT[1000:]),
            ("bytes=-5", 206, CONTENT[-5:]),
            ("bytes=0-99999", 206, CONTENT),
            ("bytes=1024-", 416, None),
            ("bytes=20-10", 416, None),
        ],
    )
    def test_ranges(
        self, client: httpx.Client, job: dict[str, object], header: str, status: int, content: bytes | None
    ) -> None:
        answer = client.get(f"/v1/models/{job['model_id']}/content", headers={"Range": header})
        assert answer.status_code == status
        if content is None:
            assert answer.headers["content-range"] == "bytes */1024"
            assert answer.headers["content-type"] == "application/problem+json"
        else:
            assert answer.content == content

    def test_an_interrupted_download_resumes_only_on_the_same_content(
        self, client: httpx.Client, job: dict[str, object]
    ) -> None:
        url = f"/v1/models/{job['model_id']}/content"
        etag = client.get(url).headers["etag"]
        same = client.get(url, headers={"Range": "bytes=512-", "If-Range": etag})
        changed = client.get(url, headers={"Range": "bytes=512-", "If-Range": '"other"'})
        assert (same.status_code, same.content) == (206, CONTENT[512:])
        assert (changed.status_code, changed.content) == (200, CONTENT)


def test_artifacts_of_a_job(api: Api, client: httpx.Client, job: dict[str, object]) -> None:
    queued = client.post("/v1/jobs", json=job).json()
    blob = Blob(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    with api.database.transaction() as session:
        held = claim_job(session, queued["id"], owner="test", lease_s=60)
        outputs = [Output("report.json", "application/json", blob)]
        completion.succeed(session, held, result={}, versions={}, outputs=outputs)
    (artifact,) = client.get(queued["links"]["artifacts"]).json()
    assert client.get(queued["links"]["self"]).json()["artifacts"] == [artifact]
    assert client.get(f"/v1/artifacts/{artifact['id']}").json() == artifact
    content = client.get(artifact["links"]["content"])
    assert content.content == CONTENT
    assert content.headers["content-disposition"] == 'attachment; filename="report.json"'
    assert content.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in content.headers["content-security-policy"]
    restructure = {"kind": "restructure", "model_id": job["model_id"], "slice_id": artifact["id"]}
    answer = client.post("/v1/jobs", json=restructure)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/slice_id")


def test_the_line_of_a_model_leads_back_to_the_upload(api: Api, client: httpx.Client, job: dict[str, object]) -> None:
    blob = Blob(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    first, model_id = job["model_id"], job["model_id"]
    line = [{"model_id": first, "name": "x", "deleted": False, "produced_by": None}]
    assert client.get(f"/v1/models/{first}").json()["lineage"] == line
    for name in ("x (restructured)", "x (restructured) (restructured)"):
        inputs = {"dataset_id": job["dataset_id"]}
        spec = {"kind": "restructure", "model_id": model_id, **inputs, "slicing": {}, "metadata": {"of_id": "mine"}}
        queued = client.post("/v1/jobs", json=spec).json()
        with api.database.transaction() as session:
            held = claim_job(session, queued["id"], owner="test", lease_s=60)
            facts = FACTS | {"architecture": {"builder": "graph"}}
            outputs = [Output("checkpoint.safetensors", "application/octet-stream", blob, role="model", facts=facts)]
            completion.succeed(session, held, result={}, versions={}, outputs=outputs)
        model_id = client.get(queued["links"]["self"]).json()["result"]["model_id"]
        produced_by = {"job_id": queued["id"], "kind": "restructure", "inputs": inputs}
        line.insert(0, {"model_id": model_id, "name": name, "deleted": False, "produced_by": produced_by})
    client.delete(f"/v1/models/{first}")
    line[-1]["deleted"] = True
    assert client.get(f"/v1/models/{model_id}").json()["lineage"] == line
    assert all(model["lineage"] == [] for model in client.get("/v1/models").json()["data"])


def test_a_deleted_model_is_gone(client: httpx.Client, job: dict[str, object]) -> None:
    url = f"/v1/models/{job['model_id']}"
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404
    assert client.delete(url).status_code == 404
    assert client.post("/v1/jobs", json=job).status_code == 404


@pytest.mark.parametrize("collection", ["models", "datasets"])
def test_deleting_an_upload_cancels_its_queued_inspection_and_no_other(
    api: Api, client: httpx.Client, collection: str
) -> None:
    spec = SPEC if collection == "models" else "{}"
    first, second = (
        client.post(f"/v1/{collection}", data={"spec": spec}, files={"file": ("f", b"content")}).json()["id"]
        for _ in range(2)
    )
    assert client.delete(f"/v1/{collection}/{first}").status_code == 204
    with api.database.transaction() as session:
        jobs = session.scalars(select(JobRow).where(JobRow.project_id == api.project)).all()
        found = {(job.spec.get("model_id") or job.spec.get("dataset_id")): job.status for job in jobs}
    assert found == {first: "cancelled", second: "queued"}
