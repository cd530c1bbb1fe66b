"""`/v1/webhooks` over real HTTP."""

import httpx
import pytest

from app.projects.keys import create_key
from app.webhooks.delivering import deliver_next
from app.webhooks.sending import Sender
from tests.app.api.conftest import Api

BODY = {"url": "https://hooks.example.invalid/nss", "events": ["job.cancelled"]}
NOBODY = "whk_" + "0" * 26


def cancel_one(client: httpx.Client, job: dict[str, object]) -> None:
    queued = client.post("/v1/jobs", json=job).json()
    assert client.post(queued["links"]["cancel"]).json()["status"] == "cancelled"


def test_a_webhook_from_making_to_deleting(client: httpx.Client) -> None:
    answer = client.post("/v1/webhooks", json=BODY)
    made = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"/v1/webhooks/{made['id']}")
    assert made.pop("secret").startswith("whsec_")
    assert made["enabled"] is True
    assert client.get(made["links"]["self"]).json() == made
    assert client.get("/v1/webhooks").json() == [made]
    changed = client.patch(made["links"]["self"], json={"events": ["job.started"], "enabled": False}).json()
    assert (changed["events"], changed["enabled"], changed["url"]) == (["job.started"], False, made["url"])
    assert changed["disabled_reason"] == "A client disabled it."
    assert client.patch(made["links"]["self"], json={"enabled": True}).json()["disabled_at"] is None
    assert client.delete(made["links"]["self"]).status_code == 204
    assert client.get(made["links"]["self"]).status_code == 404
    assert client.delete(made["links"]["self"]).status_code == 404


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"url": "http://hooks.example.org/"}, "/url"),
        ({"url": "https://10.0.0.1/"}, "/url"),
        ({"url": "x" * 3000}, "/url"),
        ({"events": []}, "/events"),
        ({"events": ["job.magic"]}, "/events/0"),
        ({"secret": "mine"}, "/secret"),
    ],
)
def test_a_bad_webhook_is_a_422_that_points_at_the_field(
    client: httpx.Client, change: dict[str, object], pointer: str
) -> None:
    answer = client.post("/v1/webhooks", json=BODY | change)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer
    made = client.post("/v1/webhooks", json=BODY).json()
    if pointer != "/secret":
        assert client.patch(made["links"]["self"], json=change).status_code == 422


def test_a_project_has_so_many_and_no_more(client: httpx.Client) -> None:
    answers = [client.post("/v1/webhooks", json=BODY).status_code for _ in range(21)]
    assert answers == [201] * 20 + [409]


def test_another_projects_webhooks_do_not_exist_here(api: Api, client: httpx.Client) -> None:
    made = client.post("/v1/webhooks", json=BODY).json()
    with api.database.transaction() as session:
        other = create_key(session, project="another", name="")
    with api.client(other) as stranger:
        assert stranger.get("/v1/webhooks").json() == []
        for answer in (
            stranger.get(made["links"]["self"]),
            stranger.get(made["links"]["deliveries"]),
            stranger.post(made["links"]["rotate"]),
            stranger.patch(made["links"]["self"], json={}),
            stranger.delete(made["links"]["self"]),
        ):
            assert answer.status_code == 404


def test_rotating_shows_the_new_secret_once(client: httpx.Client) -> None:
    made = client.post("/v1/webhooks", json=BODY).json()
    rotated = client.post(made["links"]["rotate"], json={"overlap_s": 60}).json()
    assert rotated["secret"] != made["secret"]
    assert rotated["previous_secret_until"] is not None
    assert "secret" not in client.get(made["links"]["self"]).json()


def test_the_delivery_log_and_redelivery(
    api: Api, client: httpx.Client, job: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = client.post("/v1/webhooks", json=BODY).json()
    for _ in range(3):
        cancel_one(client, job)
    log = client.get(made["links"]["deliveries"], params={"limit": 2}).json()
    rest = client.get(made["links"]["deliveries"], params={"limit": 2, "cursor": log["next_cursor"]}).json()
    ids = [item["id"] for item in log["data"] + rest["data"]]
    assert (len(ids), ids) == (3, sorted(ids, reverse=True))
    assert rest["next_cursor"] is None
    while deliver_next(api.settings, api.database, Sender(api.settings)):
        pass
    (tried,) = [item for item in client.get(made["links"]["deliveries"]).json()["data"] if item["tries"]]
    assert "cannot be resolved" in tried["log"][0]["error"]
    assert client.get(made["links"]["deliveries"], params={"status": "delivered"}).json()["data"] == []
    again = client.post(tried["links"]["redeliver"])
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (202, tried["id"], "pending")
    assert again.json()["next_try_at"] < tried["next_try_at"]
    client.patch(made["links"]["self"], json={"enabled": False})
    assert client.post(tried["links"]["redeliver"]).status_code == 409
    unknown = made["links"]["deliveries"] + "/evt_" + "0" * 26 + "/redeliver"
    assert client.post(unknown).status_code == 404


def test_every_post_takes_effect_once(client: httpx.Client, job: dict[str, object]) -> None:
    def twice(path: str, body: object = None) -> httpx.Response:
        headers = {"Idempotency-Key": path}
        first, second = (client.post(path, json=body, headers=headers) for _ in range(2))
        assert (first.status_code, first.json()) == (second.status_code, second.json())
        assert second.headers["idempotent-replayed"] == "true"
        return first

    made = twice("/v1/webhooks", BODY).json()
    assert len(client.get("/v1/webhooks").json()) == 1
    assert twice(made["links"]["rotate"]).json()["secret"] != made["secret"]
    cancel_one(client, job)
    (delivery,) = client.get(made["links"]["deliveries"]).json()["data"]
    twice(delivery["links"]["redeliver"])
