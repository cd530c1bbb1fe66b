"""Downloads where an object store has the files."""

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app.artifacts.catalog import Catalog, NewAsset, accept
from app.artifacts.orm import ModelRow
from app.artifacts.stores import make_store
from app.db import Database
from app.projects.keys import authenticate, create_key
from app.settings import Settings
from tests.app.api.conftest import FACTS, serving
from tests.app.artifacts.conftest import BUCKET, s3_endpoint  # noqa: F401 a fixture

CONTENT = bytes(range(256)) * 4


@pytest.fixture
def client(
    new_database: Callable[[], str],
    tmp_path: Path,
    s3_endpoint: str,  # noqa: F811
) -> Iterator[httpx.Client]:
    """A client whose project has one model; its id is in the base address."""
    database = Database(new_database())
    settings = Settings(data_dir=tmp_path, store_url=f"s3://{BUCKET}/api", store_endpoint_url=s3_endpoint)
    with database.transaction() as session:
        key = create_key(session, project="p", name="")
    blob = make_store(settings, database).put_stream(io.BytesIO(CONTENT), max_bytes=10**6)
    with database.transaction() as session:
        project_id = authenticate(session, key).project_id
        model = Catalog(session, project_id).add(ModelRow, NewAsset("m", {}, {}), blob)
        accept(model, digest=blob.digest, size_bytes=blob.size_bytes, facts=FACTS)
    headers = {"Authorization": f"Bearer {key}"}
    with (
        serving(settings, database) as url,
        httpx.Client(base_url=f"{url}/v1/models/{model.id}", headers=headers, timeout=20) as client,
    ):
        yield client
    database.dispose()


def test_a_download_leads_to_the_store_unless_it_is_to_be_proxied(client: httpx.Client, s3_endpoint: str) -> None:  # noqa: F811
    etag = f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    answer = client.get("/content")
    assert (answer.status_code, answer.headers["etag"]) == (307, etag)
    assert answer.headers["location"].startswith(s3_endpoint)
    assert answer.headers["cache-control"] == "no-store"
    assert httpx.get(answer.headers["location"]).content == CONTENT
    assert client.get("/content", headers={"If-None-Match": etag}).status_code == 304
    proxied = client.get("/content?proxied=true", headers={"Range": "bytes=3-9"})
    assert (proxied.status_code, proxied.content, proxied.headers["etag"]) == (206, CONTENT[3:10], etag)
