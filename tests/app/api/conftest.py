"""The API behind a real uvicorn, without a worker: what would be a worker's writes, tests make themselves."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from app.artifacts.catalog import Catalog, NewAsset, accept
from app.artifacts.orm import DatasetRow, ModelRow
from app.artifacts.store import LocalBlobStore
from app.db import Database
from app.ids import new_id
from app.main import create_app
from app.projects.keys import SCOPES, authenticate, create_key
from app.settings import Settings

FACTS = {"input_shape": [1, 8, 8], "categories": 10}


@dataclass
class Api:
    """A running API and what tests need to reach behind it."""

    url: str
    key: str
    project: str
    database: Database
    store: LocalBlobStore
    settings: Settings
    project_name: str = ""

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20)


@contextmanager
def serving(settings: Settings, database: Database, app: FastAPI | None = None) -> Iterator[str]:
    """The address of a running API."""
    config = uvicorn.Config(app or create_app(settings, database), port=0, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def server(new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One running API for all tests; each works in a project of its own."""
    database = Database(new_database())
    settings = Settings(data_dir=tmp_path_factory.mktemp("api"), max_body_bytes=200_000, max_json_bytes=20_000)
    with serving(settings, database) as url:
        yield Api(url, "", "", database, LocalBlobStore(settings.blob_dir), settings)
    database.dispose()


@pytest.fixture
def api(server: Api) -> Api:
    """The API with a fresh project and its key."""
    name = new_id("test")
    with server.database.transaction() as session:
        key = create_key(session, project=name, name="")
        return replace(server, key=key, project=authenticate(session, key).project_id, project_name=name)


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    """A client with a valid key."""
    with api.client() as client:
        yield client


@pytest.fixture
def admin_key(api: Api) -> str:
    """A key of the same project with every scope."""
    with api.database.transaction() as session:
        return create_key(session, project=api.project_name, name="admin", scopes=SCOPES)


@pytest.fixture
def admin(api: Api, admin_key: str) -> Iterator[httpx.Client]:
    """A client with that key."""
    with api.client(admin_key) as client:
        yield client


@pytest.fixture
def job(api: Api) -> dict[str, object]:
    """The body of a valid slice job, on a ready model and dataset."""
    with api.database.transaction() as session:
        catalog = Catalog(session, api.project)
        source = api.settings.data_dir / "content"
        source.write_bytes(bytes(range(256)) * 4)
        blob = api.store.put_file(source)
        rows = [catalog.add(kind, NewAsset("x", {}, {}), blob) for kind in (ModelRow, DatasetRow)]
        for row in rows:
            accept(row, digest=blob.digest, size_bytes=blob.size_bytes, facts=FACTS)
    return {"kind": "slice", "model_id": rows[0].id, "dataset_id": rows[1].id}
