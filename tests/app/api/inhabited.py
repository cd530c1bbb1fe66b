"""A project with something of each kind in it, for requests that are to get further than a 404."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from app.artifacts.catalog import Catalog, NewAsset, accept
from app.artifacts.orm import ArtifactRow, DatasetRow, ModelRow
from app.db import Database
from app.ids import new_id
from app.jobs.logs import keep_log
from app.projects.keys import SCOPES, create_key
from tests.app.api.conftest import FACTS, Api
from tests.app.api.test_jobs import claim, succeed

PROJECT = "inhabited"


@dataclass
class Inhabited:
    """The API, and where things are."""

    api: Api
    real: dict[str, Iterator[str]]
    """By parameter: ids of things that nobody deletes."""
    spare: dict[str, Callable[[], str]]
    """By parameter: makes one more, to be deleted."""
    numbers: Iterator[int] = field(default_factory=itertools.count)


def new_key(database: Database) -> str:
    """A key of the project with every scope."""
    with database.transaction() as session:
        return create_key(session, project=PROJECT, name="", scopes=SCOPES)


def fill(api: Api) -> Inhabited:
    """Jobs in several states with what they left, models and datasets, an upload, a webhook with deliveries, a key."""
    source = api.settings.data_dir / "content"
    source.write_bytes(b"content")
    blob = api.store.put_file(source)

    def posted(path: str, body: dict[str, object]) -> str:
        with api.client() as client:
            answer = client.post(path, json=body)
        assert answer.is_success, answer.text
        return str(answer.json()["id"])

    def asset(kind: type[ModelRow] | type[DatasetRow]) -> str:
        with api.database.transaction() as session:
            row = Catalog(session, api.project).add(kind, NewAsset("x", {}, {}), blob)
            accept(row, digest=blob.digest, size_bytes=blob.size_bytes, facts=FACTS)
            return row.id

    def artifact() -> str:
        row = {"id": new_id("art"), "project_id": api.project, "job_id": held.job_id, "fence": held.fence}
        file = {"name": "slice.safetensors", "media_type": "application/octet-stream"}
        with api.database.transaction() as session:
            session.add(ArtifactRow(**row, **file, digest=blob.digest, size_bytes=blob.size_bytes))
        return row["id"]

    def webhook() -> str:
        return posted("/v1/webhooks", {"url": "https://example.org/", "events": ["job.queued"]})

    model_id, dataset_id, webhook_id = asset(ModelRow), asset(DatasetRow), webhook()
    job = {"kind": "slice", "model_id": model_id, "dataset_id": dataset_id}
    jobs = [posted("/v1/jobs", job) for _ in range(3)]
    held = claim(api, jobs[0])
    with api.database.transaction() as session:
        keep_log(session, held, b"printed")
    succeed(api, held)
    with api.client() as client:
        client.post(f"/v1/jobs/{jobs[1]}/cancel")
        events = [item["id"] for item in client.get(f"/v1/webhooks/{webhook_id}/deliveries").json()["data"]]
    spare: dict[str, Callable[[], str]] = {
        "model_id": lambda: asset(ModelRow),
        "dataset_id": lambda: asset(DatasetRow),
        "artifact_id": artifact,
        "webhook_id": webhook,
        "upload_id": lambda: posted("/v1/uploads", {"size_bytes": 3}),
        "key_id": lambda: new_key(api.database).split("_")[1],
    }
    found = {name: [make()] for name, make in spare.items()} | {
        "model_id": [model_id],
        "dataset_id": [dataset_id],
        "webhook_id": [webhook_id],
        "job_id": jobs,
        "event_id": events,
    }
    found["slice_id"] = found["artifact_id"]
    return Inhabited(api, {name: itertools.cycle(ids) for name, ids in found.items()}, spare)
