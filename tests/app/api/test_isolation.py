"""What belongs to another project does not exist: it is answered byte for byte as what never was."""

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.artifacts.catalog import Catalog, NewAsset, accept
from app.artifacts.orm import DatasetRow, ModelRow
from app.artifacts.store import Blob
from app.db import Database
from app.ids import new_id
from app.jobs import completion, leases
from app.jobs.completion import Output
from app.jobs.specs import JOB_KINDS, references
from app.main import create_app
from app.projects.keys import SCOPES, authenticate, create_key
from app.settings import Settings
from tests.app.api.conftest import FACTS, Api
from tests.claims import claim_job

BLOB = Blob("ab" * 32, 10)
NEVER: dict[str, Callable[[], str]] = {
    "model_id": lambda: new_id("mdl"),
    "dataset_id": lambda: new_id("ds"),
    "job_id": lambda: new_id("job"),
    "artifact_id": lambda: new_id("art"),
    "upload_id": lambda: new_id("upl"),
    "webhook_id": lambda: new_id("whk"),
    "event_id": lambda: new_id("evt"),
    "key_id": lambda: secrets.token_hex(6),
}
"""An id of the right form that was never given out, for each name of a path parameter."""
BODIES: dict[str, dict[str, Any]] = {
    "rotate_key": {"json": {}},
    "rotate_webhook_secret": {"json": {}},
    "change_webhook": {"json": {"enabled": True}},
    "clone_job": {"json": {}},
    "put_upload_part": {"content": b"x", "headers": {"X-Content-SHA256": hashlib.sha256(b"x").hexdigest()}},
}
"""A valid body of each operation on one object that takes one."""
OTHER_PARAMETERS = {"number": "1"}
"""What parts of a path that are no ids may be."""

_DATABASE = Database("postgresql://nobody@127.0.0.1/none")  # never asked: the routes are known without it
DOCUMENT = create_app(Settings(), _DATABASE).openapi()
OPERATIONS = [
    (method, path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    if path.startswith("/v1/")
]
ON_ONE = [(method, path, operation["operationId"]) for method, path, operation in OPERATIONS if "{" in path]
LISTS = [
    path
    for method, path, operation in OPERATIONS
    if any(parameter["name"] == "cursor" for parameter in operation.get("parameters", ()))
]


@dataclass
class World:
    """Two projects with an object of every kind each, and one's view of the other."""

    theirs: dict[str, list[str]]
    mine: dict[str, list[str]]
    stranger: httpx.Client
    owner: httpx.Client
    database: Database
    project_id: str

    def versions(self) -> list[str]:
        """Which version of every row of the other project is in the database."""
        tables = ("models", "datasets", "artifacts", "uploads", "jobs", "webhooks", "api_keys", "audit_log")
        query = " UNION ALL ".join(f"SELECT id || xmin::text FROM {table} WHERE project_id = :p" for table in tables)
        with self.database.transaction() as session:
            return sorted(session.scalars(text(query), {"p": self.project_id}))


@pytest.fixture(scope="module")
def world(server: Api) -> Iterator[World]:
    """Everything is made once; nothing in here may change it."""
    apis = []
    for name in ("theirs", "mine"):
        with server.database.transaction() as session:
            key = create_key(session, project=f"{name}-{new_id('p')}", name="", scopes=SCOPES)
            apis.append(replace(server, key=key, project=authenticate(session, key).project_id))
    with apis[0].client() as owner, apis[1].client() as stranger:
        theirs, mine = make_one_of_each(apis[0], owner), make_one_of_each(apis[1], stranger)
        yield World(theirs, mine, stranger, owner, server.database, apis[0].project)


def make_one_of_each(api: Api, client: httpx.Client) -> dict[str, list[str]]:
    """Ids of a project's own objects, in every state that matters, by the name of a path parameter."""
    with api.database.transaction() as session:
        catalog = Catalog(session, api.project)
        kinds = (ModelRow, DatasetRow, DatasetRow, ModelRow, DatasetRow)
        model, dataset, other, *processing = [catalog.add(kind, NewAsset("x", {}, {}), BLOB) for kind in kinds]
        for row in (model, dataset, other):
            accept(row, digest=BLOB.digest, size_bytes=BLOB.size_bytes, facts=FACTS)
    spec = {"kind": "slice", "model_id": model.id, "dataset_id": dataset.id}
    hook = {"url": "https://hooks.example.invalid/", "events": ["job.succeeded"]}
    webhook_id = client.post("/v1/webhooks", json=hook).json()["id"]
    queued, done, failed = [client.post("/v1/jobs", json=spec).json()["id"] for _ in range(3)]
    with api.database.transaction() as session:
        slice_ = Output("slice.safetensors", "application/octet-stream", BLOB)
        completion.succeed(session, claimed(session, done), result={}, versions={}, outputs=[slice_])
        completion.fail(session, claimed(session, failed), {"code": "x", "detail": "x"})
    produced = increment(api, client, spec | {"kind": "increment", "new_dataset_id": other.id})
    return {
        "model_id": [model.id, processing[0].id, produced["model_id"]],
        "dataset_id": [dataset.id, other.id, processing[1].id],
        "job_id": [queued, done, failed],
        "artifact_id": [client.get(f"/v1/jobs/{done}").json()["artifacts"][0]["id"], produced["memory_id"]],
        "upload_id": [client.post("/v1/uploads", json={"size_bytes": 1}).json()["id"], complete_upload(client)],
        "webhook_id": [webhook_id],
        "event_id": [delivery["id"] for delivery in client.get(f"/v1/webhooks/{webhook_id}/deliveries").json()["data"]],
        "key_id": [client.post("/v1/keys", json={"name": "x"}).json()["id"]],
    }


def complete_upload(client: httpx.Client) -> str:
    """An upload of which a model can be made."""
    upload_id = client.post("/v1/uploads", json={"size_bytes": 1}).json()["id"]
    assert client.put(f"/v1/uploads/{upload_id}/parts/1", **BODIES["put_upload_part"]).status_code == 200
    assert client.post(f"/v1/uploads/{upload_id}/complete").status_code == 200
    return upload_id


def increment(api: Api, client: httpx.Client, spec: dict[str, Any]) -> dict[str, str]:
    """A model that an increment produced, and its memory."""
    job_id = client.post("/v1/jobs", json=spec).json()["id"]
    with api.database.transaction() as session:
        facts = FACTS | {"architecture": {"builder": "graph"}}
        outputs = [
            Output("checkpoint.safetensors", "application/octet-stream", BLOB, role="model", facts=facts),
            Output("memory.safetensors", "application/octet-stream", BLOB),
        ]
        completion.succeed(session, claimed(session, job_id), result={}, versions={}, outputs=outputs)
    job = client.get(f"/v1/jobs/{job_id}").json()
    (memory_id,) = [item["id"] for item in job["artifacts"] if item["name"] == "memory.safetensors"]
    return {"model_id": job["result"]["model_id"], "memory_id": memory_id}


def claimed(session: Any, job_id: str) -> leases.Claim:
    return claim_job(session, job_id, owner="test", lease_s=60)


def seen(answer: httpx.Response, *ids: str) -> tuple[int, dict[str, str], bytes]:
    """All that a client can tell of an answer, but for the ids that it sent, the request's id and the time."""
    headers = {name: value for name, value in answer.headers.items() if name not in ("x-request-id", "date")}
    content = answer.content.replace(answer.headers["x-request-id"].encode(), b"REQUEST")
    for sent in ids:
        content = content.replace(sent.encode(), b"ID")
    return answer.status_code, headers, content


def body_of(operation_id: str) -> dict[str, Any]:
    (operation,) = [operation for _, _, operation in OPERATIONS if operation["operationId"] == operation_id]
    if "requestBody" not in operation:
        return {}
    assert operation_id in BODIES, f"say in BODIES what a valid body of {operation_id} is"
    return BODIES[operation_id]


@pytest.mark.parametrize(("method", "path", "operation_id"), ON_ONE)
def test_on_every_path_their_objects_are_as_if_they_never_were(
    world: World, method: str, path: str, operation_id: str
) -> None:
    names, before = set(re.findall(r"{(\w+)}", path)) - set(OTHER_PARAMETERS), world.versions()
    assert names <= set(world.theirs), "make one in make_one_of_each, and an id that never was in NEVER"
    for name in names:
        own = OTHER_PARAMETERS | {other: world.mine[other][0] for other in names}
        unknown = NEVER[name]()
        for stolen in world.theirs[name]:
            answers = [
                seen(world.stranger.request(method, path.format(**own | {name: sent}), **body_of(operation_id)), sent)
                for sent in (stolen, unknown)
            ]
            assert answers[0] == answers[1]
            assert answers[0][0] == 404
    assert world.versions() == before


def job_specs(ids: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Valid jobs of one project that name objects in every way there is."""
    model, _, grown = ids["model_id"]
    dataset, other, _ = ids["dataset_id"]
    slice_, memory = ids["artifact_id"]
    on = {"model_id": model, "dataset_id": dataset}
    return {
        "slice": {"kind": "slice", **on},
        "compare": {"kind": "compare", **on},
        "restructure": {"kind": "restructure", "slice_id": slice_, **on},
        "readapt": {"kind": "readapt", "new_dataset_id": dataset, "slice_id": slice_, **on},
        "increment": {"kind": "increment", "model_id": grown, "new_dataset_id": other, "memory_id": memory},
        "first increment": {"kind": "increment", "new_dataset_id": other, **on},
    }


PLACEHOLDERS = {
    "model_id": ["mdl_", "mdl_x", "mdl_y"],
    "dataset_id": ["ds_", "ds_x", "ds_y"],
    "artifact_id": ["art_", "art_x"],
}
PLACES = [(title, place) for title, spec in job_specs(PLACEHOLDERS).items() for place in references(spec)]
PARAMETER_OF = {"mdl": "model_id", "ds": "dataset_id", "art": "artifact_id"}


@pytest.mark.parametrize(("title", "place"), PLACES)
def test_in_a_job_their_objects_are_as_if_they_never_were(world: World, title: str, place: str) -> None:
    spec, before = job_specs(world.mine)[title], world.versions()
    field = place.removeprefix("/")
    parameter = PARAMETER_OF[spec[field].partition("_")[0]]
    unknown = NEVER[parameter]()
    for stolen in world.theirs[parameter]:
        answers = [seen(world.stranger.post("/v1/jobs", json=spec | {field: sent}), sent) for sent in (stolen, unknown)]
        assert answers[0] == answers[1]
        assert answers[0][0] == 404
    assert world.versions() == before


@pytest.mark.parametrize(
    ("path", "spec"), [("/v1/models", {"builder": "mlp", "input_shape": [1, 8, 8]}), ("/v1/datasets", {})]
)
def test_of_their_uploads_nothing_is_made(world: World, path: str, spec: dict[str, Any]) -> None:
    before, unknown = world.versions(), NEVER["upload_id"]()
    own = world.stranger.post(path, json={"spec": spec, "upload": world.mine["upload_id"][1]})
    assert own.status_code == 202, own.text
    for stolen in world.theirs["upload_id"]:
        answers = [
            seen(world.stranger.post(path, json={"spec": spec, "upload": sent}), sent) for sent in (stolen, unknown)
        ]
        assert answers[0] == answers[1]
        assert answers[0][0] == 404
    assert world.versions() == before


def test_the_jobs_above_are_valid_and_name_everything_that_a_job_can_name(world: World) -> None:
    specs = job_specs(world.mine)
    assert {spec["kind"] for spec in specs.values()} == set(JOB_KINDS)
    for spec in specs.values():
        answer = world.stranger.post("/v1/jobs", json=spec)
        assert answer.status_code == 202, answer.text
    named = {field for spec in specs.values() for field in spec if field.endswith(("_id", "_ids"))}
    assert named == set(re.findall(r'"(\w+_ids?)": {', json.dumps(job_bodies())))


def job_bodies() -> list[Any]:
    """The schemas that POST /v1/jobs takes."""
    schemas = DOCUMENT["components"]["schemas"]
    body = DOCUMENT["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return [schemas[kind["$ref"].rpartition("/")[2]] for kind in body["oneOf"]]


@pytest.mark.parametrize("path", LISTS)
def test_their_ids_as_cursors_lead_nowhere_else_than_ids_that_never_were(world: World, path: str) -> None:
    before = world.versions()
    for stolen in (found for ids in world.theirs.values() for found in ids):
        never = stolen[:-4] + "".join("0" if letter != "0" else "1" for letter in stolen[-4:])
        answers = [seen(world.stranger.get(path, params={"cursor": sent}), sent) for sent in (stolen, never)]
        assert answers[0] == answers[1]
        foreign = [found for ids in world.theirs.values() for found in ids if found.encode() in answers[0][2]]
        assert foreign == []
    assert world.versions() == before


def test_the_owner_still_has_everything(world: World) -> None:
    for name in ("model_id", "dataset_id", "job_id", "artifact_id", "upload_id", "webhook_id"):
        for found in world.theirs[name]:
            assert world.owner.get(f"/v1/{name.removesuffix('_id')}s/{found}").status_code == 200
    assert world.theirs["key_id"][0] in world.owner.get("/v1/keys").text
