"""The audit log over HTTP."""

import hashlib
from collections.abc import Callable

import httpx

from app.artifacts.store import Blob
from app.jobs import completion
from app.jobs.completion import Output
from tests.app.api.conftest import Api
from tests.claims import claim_job

SPEC = '{"builder": "mlp", "kwargs": {"sizes": [64, 8, 10]}, "input_shape": [1, 8, 8]}'
WEBHOOK = {"url": "https://hooks.example.invalid/a-secret-place", "events": ["job.cancelled"]}
FILE = {"file": ("f", b"content")}


def complete(client: httpx.Client, upload_id: str) -> httpx.Response:
    digest = hashlib.sha256(b"x").hexdigest()
    part = client.put(f"/v1/uploads/{upload_id}/parts/1", content=b"x", headers={"X-Content-SHA256": digest})
    assert part.is_success
    return client.post(f"/v1/uploads/{upload_id}/complete")


def redeliver(client: httpx.Client, webhook_id: str) -> httpx.Response:
    (delivery,) = client.get(f"/v1/webhooks/{webhook_id}/deliveries").json()["data"]
    return client.post(delivery["links"]["redeliver"])


def finished(api: Api, client: httpx.Client, job: dict[str, object]) -> str:
    """The artifact of a job that has succeeded."""
    job_id = client.post("/v1/jobs", json=job).json()["id"]
    with api.database.transaction() as session:
        held = claim_job(session, job_id, owner="test", lease_s=60)
        outputs = [Output("x.json", "application/json", Blob("ab" * 32, 10))]
        completion.succeed(session, held, result={}, versions={}, outputs=outputs)
    return client.get(f"/v1/jobs/{job_id}").json()["artifacts"][0]["id"]


Request = Callable[[httpx.Client, dict[str, str]], httpx.Response]

CHANGES: dict[str, tuple[str, Request]] = {
    "create_model": ("model.create", lambda c, ids: c.post("/v1/models", data={"spec": SPEC}, files=FILE)),
    "delete_model": ("model.delete", lambda c, ids: c.delete(f"/v1/models/{ids['create_model']}")),
    "create_dataset": ("dataset.create", lambda c, ids: c.post("/v1/datasets", data={"spec": "{}"}, files=FILE)),
    "delete_dataset": ("dataset.delete", lambda c, ids: c.delete(f"/v1/datasets/{ids['create_dataset']}")),
    "create_webhook": ("webhook.create", lambda c, ids: c.post("/v1/webhooks", json=WEBHOOK)),
    "create_job": ("job.create", lambda c, ids: c.post("/v1/jobs", json=ids["spec"])),
    "cancel_job": ("job.cancel", lambda c, ids: c.post(f"/v1/jobs/{ids['create_job']}/cancel")),
    "redeliver_webhook": ("webhook.redeliver", lambda c, ids: redeliver(c, ids["create_webhook"])),
    "change_webhook": (
        "webhook.change",
        lambda c, ids: c.patch(f"/v1/webhooks/{ids['create_webhook']}", json={"enabled": False}),
    ),
    "rotate_webhook_secret": ("webhook.rotate", lambda c, ids: c.post(f"/v1/webhooks/{ids['create_webhook']}/rotate")),
    "delete_webhook": ("webhook.delete", lambda c, ids: c.delete(f"/v1/webhooks/{ids['create_webhook']}")),
    "clone_job": ("job.create", lambda c, ids: c.post(f"/v1/jobs/{ids['create_job']}/clone")),
    "retry_job": ("job.retry", lambda c, ids: c.post(f"/v1/jobs/{ids['create_job']}/retry")),
    "create_upload": ("upload.create", lambda c, ids: c.post("/v1/uploads", json={"size_bytes": 1})),
    "complete_upload": ("upload.complete", lambda c, ids: complete(c, ids["create_upload"])),
    "delete_upload": ("upload.delete", lambda c, ids: c.delete(f"/v1/uploads/{ids['create_upload']}")),
    "delete_artifact": ("artifact.delete", lambda c, ids: c.delete(f"/v1/artifacts/{ids['artifact']}")),
    "create_key": ("key.create", lambda c, ids: c.post("/v1/keys", json={"name": "x"})),
    "rotate_key": ("key.rotate", lambda c, ids: c.post(f"/v1/keys/{ids['create_key']}/rotate")),
    "revoke_key": ("key.revoke", lambda c, ids: c.delete(f"/v1/keys/{ids['create_key']}")),
}
"""What each operation that changes something is called in the log, and how to ask for it; in this order."""
UNRECORDED = {"put_upload_part"}
"""The bytes of what is recorded."""


def test_every_operation_that_changes_something_leaves_a_row(
    api: Api, admin: httpx.Client, job: dict[str, object]
) -> None:
    document = httpx.get(f"{api.url}/openapi.json").json()
    changing = {
        operation["operationId"]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method != "get"
    }
    assert changing - UNRECORDED == set(CHANGES), "record() each change, and say here what it is called"
    ids: dict[str, object] = {"spec": job, "artifact": finished(api, admin, job)}
    for operation_id, (action, ask) in CHANGES.items():
        answer = ask(admin, ids)
        assert answer.is_success, answer.text
        ids[operation_id] = answer.json()["id"] if answer.content else None
        rows = admin.get("/v1/audit", params={"action": action}).json()["data"]
        assert answer.headers["x-request-id"] in [row["request_id"] for row in rows], operation_id
    everything = admin.get("/v1/audit", params={"limit": 200}).text
    assert all(secret not in everything for secret in ("a-secret-place", "whsec_", "nss_"))


def test_names_who_changed_what_and_for_which_request(
    admin: httpx.Client, admin_key: str, client: httpx.Client, api: Api, job: dict[str, object]
) -> None:
    queued = client.post("/v1/jobs", json=job)
    job_id = queued.json()["id"]
    client.post(f"/v1/jobs/{job_id}/cancel")
    client.post(f"/v1/jobs/{job_id}/cancel")
    client.post(f"/v1/jobs/{job_id}/retry")
    client.delete(f"/v1/models/{job['model_id']}")
    made = admin.post("/v1/keys", json={"name": "ci"}).json()
    rows = admin.get("/v1/audit").json()["data"]
    actor, admins = f"key:{api.key.split('_')[1]}", f"key:{admin_key.split('_')[1]}"
    assert [(row["actor"], row["action"], row["object_id"]) for row in rows[:5]] == [
        (admins, "key.create", made["id"]),
        (actor, "model.delete", job["model_id"]),
        (actor, "job.retry", job_id),
        (actor, "job.cancel", job_id),
        (actor, "job.create", job_id),
    ]
    assert rows[4]["request_id"] == queued.headers["x-request-id"]
    assert {row["address"] for row in rows[:5]} == {"127.0.0.1"}
    assert made["key"].split("_")[2] not in str(rows)


def test_is_filtered_and_comes_in_pages(admin: httpx.Client, client: httpx.Client, job: object) -> None:
    ids = [client.post("/v1/jobs", json=job).json()["id"] for _ in range(3)]
    params = {"action": "job.create", "limit": 2}
    first = admin.get("/v1/audit", params=params).json()
    rest = admin.get("/v1/audit", params=params | {"cursor": first["next_cursor"]}).json()
    assert sorted(row["object_id"] for row in first["data"] + rest["data"]) == sorted(ids)
    (one,) = admin.get("/v1/audit", params={"object_id": ids[0]}).json()["data"]
    later = admin.get("/v1/audit", params={"since": "2999-01-01T00:00:00Z"}).json()
    assert (one["action"], later["data"]) == ("job.create", [])
    assert admin.get("/v1/audit", params={"since": "2026-01-01"}).status_code == 422


def test_what_was_refused_or_repeated_is_not_in_it(
    admin: httpx.Client, client: httpx.Client, job: dict[str, object]
) -> None:
    client.post("/v1/jobs", json=job | {"model_id": "mdl_" + "0" * 26})
    for _ in range(2):
        client.post("/v1/jobs", json=job, headers={"Idempotency-Key": "once"})
    assert len(admin.get("/v1/audit", params={"action": "job.create"}).json()["data"]) == 1
