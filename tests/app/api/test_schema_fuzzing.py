"""Requests that the description allows or forbids, sent to the real API: no 5xx, and no answer that it leaves out."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.artifacts.catalog import Catalog, NewAsset, accept
from app.artifacts.orm import DatasetRow, ModelRow
from app.artifacts.store import LocalBlobStore
from app.db import Database
from app.jobs.logs import keep_log
from app.projects.keys import authenticate, create_key
from app.settings import Settings
from tests.app.api import snapshot
from tests.app.api.conftest import FACTS, Api, serving
from tests.app.api.test_jobs import claim, succeed

EXAMPLES = 10
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]

schema = schemathesis.openapi.from_dict(json.loads(snapshot.describe()))


@dataclass
class Target:
    """A running API with something of each kind in it, and where that is."""

    api: Api
    real: dict[str, Iterator[str]]


@pytest.fixture(scope="module")
def target(new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    database = Database(new_database())
    configured = Settings(data_dir=tmp_path_factory.mktemp("fuzz"), max_body_bytes=200_000, long_poll_max_s=0.01)
    store = LocalBlobStore(configured.blob_dir)
    with serving(configured, database) as url:
        with database.transaction() as session:
            key = create_key(session, project="fuzz", name="")
            project = authenticate(session, key).project_id
            source = configured.data_dir / "content"
            source.write_bytes(b"content")
            catalog, blob = Catalog(session, project), store.put_file(source)
            assets = [catalog.add(kind, NewAsset("x", {}, {}), blob) for kind in (ModelRow, DatasetRow)]
            for asset in assets:
                accept(asset, digest=blob.digest, size_bytes=blob.size_bytes, facts=FACTS)
        api = Api(url, key, project, database, store, configured)
        yield Target(api, _fill(api, *(asset.id for asset in assets)))
    database.dispose()


def _fill(api: Api, model_id: str, dataset_id: str) -> dict[str, Iterator[str]]:
    """Jobs in several states and a webhook with deliveries; the ids of all, by parameter."""
    with api.client() as client:
        webhook = client.post("/v1/webhooks", json={"url": "https://example.org/", "events": ["job.queued"]}).json()
        body = {"kind": "slice", "model_id": model_id, "dataset_id": dataset_id}
        jobs = [client.post("/v1/jobs", json=body).json()["id"] for _ in range(3)]
        held = claim(api, jobs[0])
        with api.database.transaction() as session:
            keep_log(session, held, b"printed")
        succeed(api, held)
        client.post(f"/v1/jobs/{jobs[1]}/cancel")
        events = [item["id"] for item in client.get(webhook["links"]["deliveries"]).json()["data"]]
    found = {
        "model_id": [model_id],
        "dataset_id": [dataset_id],
        "job_id": jobs,
        "webhook_id": [webhook["id"]],
        "event_id": events,
    }
    return {name: itertools.cycle(ids) for name, ids in found.items()}


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_operation_keeps_to_its_description(case: schemathesis.Case, target: Target) -> None:
    """Half of the well-formed ids are those of something that exists, so that requests get further than a 404."""
    for place in (case.path_parameters, case.body):
        if isinstance(place, dict) and case.method != "DELETE":
            for name, value in place.items():
                if name in target.real and isinstance(value, str) and value[-1:] < "h":
                    place[name] = next(target.real[name])
    headers = {"Authorization": f"Bearer {target.api.key}"}
    case.call_and_validate(base_url=target.api.url, headers=headers, checks=CHECKS)


def test_the_api_is_still_there(target: Target) -> None:
    assert httpx.get(f"{target.api.url}/readyz").json()["database"] == "ok"
