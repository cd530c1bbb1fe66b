"""The whole service on an object store: a real S3 API server, uploads in parts, workers that share no blobs."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import httpx
import pytest

from neusemslice import ModelSlice
from neusemslice_cli import client as client_module
from tests.app.artifacts.conftest import BUCKET, credentials, s3_endpoint  # noqa: F401 a fixture
from tests.e2e.conftest import Service, upload


@pytest.fixture
def on_s3(
    tmp_path: Path,
    new_database: Callable[[], str],
    s3_endpoint: str,  # noqa: F811
) -> Iterator[Service]:
    store = {"NEUSEMSLICE_STORE_URL": f"s3://{BUCKET}/e2e", "NEUSEMSLICE_STORE_ENDPOINT_URL": s3_endpoint}
    service = Service(tmp_path / "data", {"DATABASE_URL": new_database(), **store, **credentials()}).start()
    yield service
    service.stop()


def test_a_job_reads_from_the_store_and_its_files_are_downloaded_from_it(
    on_s3: Service,
    network_file: Path,
    dataset_file: Path,
    tmp_path: Path,
    s3_endpoint: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "FORM_MAX_BYTES", 1000)
    with on_s3.client() as client:
        job = client.wait(client.submit({"kind": "slice", **upload(client, network_file, dataset_file)}))
        assert job["status"] == "succeeded", job["error"]
        slice_artifact = next(item for item in job["artifacts"] if item["name"] == "slice.safetensors")
        path = client.download(slice_artifact["links"]["content"], tmp_path / "slice.safetensors")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == slice_artifact["sha256"]
    assert ModelSlice.load(path).keep_masks
    with on_s3.http() as http:
        redirect = http.get(slice_artifact["links"]["content"])
        assert redirect.status_code == httpx.codes.TEMPORARY_REDIRECT
        assert redirect.headers["location"].startswith(s3_endpoint)
    stored = boto3.client("s3", endpoint_url=s3_endpoint).list_objects_v2(Bucket=BUCKET, Prefix="e2e/")["Contents"]
    assert slice_artifact["sha256"] in {item["Key"].rpartition("/")[2] for item in stored}
    assert not list(on_s3.data_dir.glob("blobs/*/*"))
