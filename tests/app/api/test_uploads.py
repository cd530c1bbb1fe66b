"""Uploads in parts over real HTTP: in any order, side by side, again, and after an interruption."""

import hashlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import func, select, update

from app.api import receiving
from app.artifacts.completing import complete
from app.artifacts.orm import ModelRow, UploadPartRow, UploadRow
from app.artifacts.running_digest import RunningDigest
from app.artifacts.staging import Staging
from app.artifacts.stores import make_store
from app.artifacts.usage import stored_bytes
from app.db import Database
from app.projects.keys import create_key
from app.settings import Settings
from tests.app.api.conftest import Api, serving

PART = 10_000
CONTENT = bytes(range(256)) * 100  # 25,600 bytes: three parts
SPEC = {"builder": "mlp", "kwargs": {"sizes": [64, 8, 10]}, "input_shape": [1, 8, 8]}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def server(new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """As for the other tests, with short parts."""
    database = Database(new_database())
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("uploads"),
        max_body_bytes=200_000,
        max_json_bytes=20_000,
        upload_part_bytes=PART,
        max_upload_bytes=10**6,
    )
    with serving(settings, database) as url:
        yield Api(url, "", "", database, make_store(settings, database), settings)  # type: ignore[arg-type]
    database.dispose()


def start(client: httpx.Client, content: bytes = CONTENT, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/uploads", json={"size_bytes": len(content), **body})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/uploads/{answer.json()['id']}"
    upload: dict[str, Any] = answer.json()
    return upload


def part_of(content: bytes, number: int) -> bytes:
    return content[(number - 1) * PART : number * PART]


def put(client: httpx.Client, upload: dict[str, Any], number: int, content: bytes = CONTENT) -> httpx.Response:
    part = part_of(content, number)
    return send(client, upload, number, part)


def send(client: httpx.Client, upload: dict[str, Any], number: int, part: Any, digest: str = "") -> httpx.Response:
    headers = {"X-Content-SHA256": digest or sha256(part)}
    return client.put(f"/v1/uploads/{upload['id']}/parts/{number}", content=part, headers=headers)


def finish(client: httpx.Client, upload: dict[str, Any]) -> httpx.Response:
    return client.post(f"/v1/uploads/{upload['id']}/complete")


def sent(client: httpx.Client, content: bytes = CONTENT, **body: Any) -> dict[str, Any]:
    upload = start(client, content, **body)
    for number in range(1, upload["part_count"] + 1):
        assert put(client, upload, number, content).status_code == 200
    return upload


class TestTheWholeWay:
    def test_parts_in_any_order_and_side_by_side_become_a_model(self, api: Api, client: httpx.Client) -> None:
        upload = start(client, sha256=sha256(CONTENT), name="mine")
        assert (upload["status"], upload["part_bytes"], upload["part_count"]) == ("open", PART, 3)
        with ThreadPoolExecutor(3) as threads:
            answers = list(threads.map(lambda number: put(client, upload, number), (3, 1, 2)))
        assert [answer.json()["size_bytes"] for answer in answers] == [5_600, PART, PART]
        done = finish(client, upload)
        assert (done.status_code, done.json()["status"], done.json()["sha256"]) == (200, "complete", sha256(CONTENT))
        assert api.store.path(sha256(CONTENT)).read_bytes() == CONTENT
        assert not Staging(api.settings.upload_dir).path(upload["id"]).exists()
        model = client.post("/v1/models", json={"upload": upload["id"], "spec": SPEC, "metadata": {"a": "b"}})
        assert (model.status_code, model.json()["name"], model.json()["status"]) == (202, "mine", "processing")
        assert (model.json()["architecture"], model.json()["metadata"]) == (SPEC, {"a": "b"})
        with api.database.transaction() as session:
            assert session.get_one(ModelRow, model.json()["id"]).source_digest == sha256(CONTENT)
        dataset = client.post("/v1/datasets", json={"upload": upload["id"], "name": "d"})
        assert (dataset.status_code, dataset.json()["name"]) == (202, "d")

    def test_an_interrupted_upload_says_what_is_there(self, client: httpx.Client) -> None:
        upload = start(client)
        put(client, upload, 2)
        (there,) = client.get(f"/v1/uploads/{upload['id']}").json()["parts"]
        assert there == {"number": 2, "size_bytes": PART, "sha256": sha256(part_of(CONTENT, 2))}
        refused = finish(client, upload)
        assert (refused.status_code, refused.json()["code"]) == (409, "parts_missing")
        assert "2 of 3 parts are missing: 1, 3." in refused.json()["detail"]
        for number in (1, 3):
            put(client, upload, number)
        assert finish(client, upload).json()["sha256"] == sha256(CONTENT)

    def test_completing_twice_and_repeating_a_start_do_no_harm(self, client: httpx.Client) -> None:
        upload = sent(client)
        first, again = finish(client, upload), finish(client, upload)
        assert (first.status_code, again.status_code) == (200, 200)
        assert first.json() == again.json()
        headers = {"Idempotency-Key": "k"}
        bodies = [client.post("/v1/uploads", json={"size_bytes": 1}, headers=headers).json() for _ in range(2)]
        assert bodies[0] == bodies[1]

    def test_a_part_that_is_sent_again_takes_the_place_of_the_first(self, client: httpx.Client) -> None:
        other = bytes(len(CONTENT))
        upload = start(client)
        for number in (1, 2, 3):
            put(client, upload, number, other)
        for number in (1, 2, 3):
            assert put(client, upload, number).status_code == 200
            assert put(client, upload, number).status_code == 200
        assert finish(client, upload).json()["sha256"] == sha256(CONTENT)

    def test_bytes_that_others_stored_are_kept_once(self, api: Api, client: httpx.Client) -> None:
        content = b"shared" * 1000
        finish(client, sent(client, content))
        inode = api.store.path(sha256(content)).stat().st_ino
        with api.database.transaction() as session:
            key = create_key(session, project="sharing", name="")
        with api.client(key) as stranger:
            assert finish(stranger, sent(stranger, content)).status_code == 200
        assert api.store.path(sha256(content)).stat().st_ino == inode

    def test_bytes_of_an_upload_count_from_its_start(self, api: Api, client: httpx.Client) -> None:
        upload = sent(client)
        with api.database.transaction() as session:
            assert stored_bytes(session, api.project) == len(CONTENT)
        finish(client, upload)
        client.post("/v1/datasets", json={"upload": upload["id"]})
        with api.database.transaction() as session:
            assert stored_bytes(session, api.project) == len(CONTENT)
        client.delete(f"/v1/uploads/{start(client)['id']}")
        with api.database.transaction() as session:
            assert stored_bytes(session, api.project) == len(CONTENT)


class TestInstantUpload:
    def test_what_the_project_has_need_not_be_sent(self, client: httpx.Client) -> None:
        finish(client, sent(client))
        again = start(client, sha256=sha256(CONTENT))
        assert (again["status"], again["parts"]) == ("complete", [])
        assert client.post("/v1/datasets", json={"upload": again["id"]}).status_code == 202

    def test_knowing_a_digest_gets_nobody_anothers_bytes(self, api: Api, client: httpx.Client) -> None:
        secret = b"another project's" * 100
        finish(client, sent(client, secret))
        with api.database.transaction() as session:
            key = create_key(session, project="curious", name="")
        with api.client(key) as stranger:
            upload = start(stranger, secret, sha256=sha256(secret))
            assert upload["status"] == "open"
            assert finish(stranger, upload).json()["code"] == "parts_missing"
            refused = stranger.post("/v1/datasets", json={"upload": upload["id"]})
            assert (refused.status_code, refused.json()["code"]) == (409, "upload_incomplete")

    def test_not_with_another_size_and_not_of_what_was_deleted(self, client: httpx.Client) -> None:
        content = b"soon gone" * 100
        upload = sent(client, content)
        finish(client, upload)
        assert start(client, content + b"x", sha256=sha256(content))["status"] == "open"
        client.delete(f"/v1/uploads/{upload['id']}")
        assert start(client, content, sha256=sha256(content))["status"] == "open"


class TestRefusals:
    def test_a_part_whose_bytes_are_not_what_the_header_says(self, client: httpx.Client) -> None:
        upload = start(client)
        answer = send(client, upload, 1, part_of(CONTENT, 1), sha256(b"other"))
        assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")
        assert answer.json()["errors"][0]["pointer"] == "/header/x-content-sha256"
        assert client.get(f"/v1/uploads/{upload['id']}").json()["parts"] == []

    def test_a_file_that_is_not_the_declared_one_and_a_way_out(self, client: httpx.Client) -> None:
        upload = sent(client, b"x" * len(CONTENT), sha256=sha256(CONTENT))
        for _ in range(2):
            answer = finish(client, upload)
            assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")
            assert answer.json()["errors"][0]["pointer"] == "/sha256"
        for number in (1, 2, 3):
            put(client, upload, number)
        assert finish(client, upload).status_code == 200

    @pytest.mark.parametrize("size", [PART - 1, PART + 1, 0])
    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_part_of_another_size(self, client: httpx.Client, size: int, chunked: bool) -> None:
        upload, part = start(client), bytes(size)
        answer = send(client, upload, 1, iter([part[:5000], part[5000:]]) if chunked else part, sha256(part))
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
        assert f"part 1 has {PART} bytes" in answer.json()["detail"]
        assert client.get(f"/v1/uploads/{upload['id']}").json()["parts"] == []

    @pytest.mark.parametrize(
        ("number", "digest", "pointer"), [(4, "", "/path/number"), (0, "", "/path/number"), (1, "abc", "/header")]
    )
    def test_a_part_that_there_cannot_be(self, client: httpx.Client, number: int, digest: str, pointer: str) -> None:
        answer = send(client, start(client), number, bytes(PART), digest)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"].startswith(pointer)

    def test_a_file_that_is_too_large(self, client: httpx.Client) -> None:
        answer = client.post("/v1/uploads", json={"size_bytes": 10**6 + 1})
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")

    @pytest.mark.parametrize("body", [{}, {"size_bytes": 0}, {"size_bytes": 1, "sha256": "X" * 64}, {"size": 1}])
    def test_a_start_that_makes_no_sense(self, client: httpx.Client, body: dict[str, Any]) -> None:
        assert client.post("/v1/uploads", json=body).status_code == 422

    def test_a_complete_upload_takes_no_parts(self, client: httpx.Client) -> None:
        upload = sent(client)
        finish(client, upload)
        answer = put(client, upload, 1)
        assert (answer.status_code, answer.json()["code"]) == (409, "upload_complete")

    def test_unknown_deleted_and_anothers_uploads(self, api: Api, client: httpx.Client) -> None:
        mine, deleted = sent(client), start(client)
        assert client.delete(f"/v1/uploads/{deleted['id']}").status_code == 204
        unknown = {"id": "upl_" + "0" * 26}
        with api.database.transaction() as session:
            key = create_key(session, project="elsewhere", name="")
        with api.client(key) as stranger:
            for who, upload in ((client, unknown), (client, deleted), (stranger, mine)):
                path = f"/v1/uploads/{upload['id']}"
                answers = [
                    who.get(path),
                    who.delete(path),
                    put(who, upload, 1),
                    finish(who, upload),
                    who.post("/v1/models", json={"upload": upload["id"], "spec": SPEC}),
                    who.post("/v1/datasets", json={"upload": upload["id"]}),
                ]
                assert {answer.status_code for answer in answers} == {404}
        assert finish(client, mine).status_code == 200

    def test_an_expired_upload(self, api: Api, client: httpx.Client) -> None:
        upload = sent(client)
        expire(api, upload)
        for answer in (put(client, upload, 1), finish(client, upload), client.get(f"/v1/uploads/{upload['id']}")):
            assert (answer.status_code, answer.json()["code"]) == (410, "upload_expired")

    def test_a_bad_json_body_points_at_the_field(self, client: httpx.Client) -> None:
        upload = start(client)
        answer = client.post(
            "/v1/models", json={"upload": upload["id"], "spec": {"builder": "mlp", "input_shape": [0]}}
        )
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/spec/input_shape/0")
        long = json.dumps({"upload": upload["id"], "spec": SPEC, "name": "x" * 30_000})
        headers = {"content-type": "application/json; charset=utf-8"}
        assert client.post("/v1/models", content=long, headers=headers).status_code == 413


class TestTwoAtOnce:
    def test_a_place_that_is_being_written_is_nobody_elses(self, client: httpx.Client) -> None:
        upload, begun, go_on = start(client), threading.Event(), threading.Event()
        part = part_of(CONTENT, 1)

        def slowly() -> Iterator[bytes]:
            yield part[:100]
            begun.set()
            go_on.wait(10)
            yield part[100:]

        with ThreadPoolExecutor(1) as threads:
            slow = threads.submit(send, client, upload, 1, slowly(), sha256(part))
            begun.wait(10)
            time.sleep(0.5)  # it is on its way; the server has the place taken by now
            while not slow.done():
                answer = send(client, upload, 1, bytes(PART))
                if answer.status_code == 409:
                    break
            assert answer.json()["code"] == "upload_busy"
            assert client.delete(f"/v1/uploads/{upload['id']}").json()["code"] == "upload_busy"
            assert put(client, upload, 2).status_code == 200
            go_on.set()
            assert slow.result().status_code == 200

    def test_a_sender_that_vanishes_or_falls_silent_leaves_the_part_free(
        self, api: Api, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(receiving, "SILENCE_S", 0.5)
        upload = start(client)
        address = urlsplit(api.url).netloc
        for number, vanishes in ((1, True), (2, False)):
            connection = http.client.HTTPConnection(address)
            connection.putrequest("PUT", f"/v1/uploads/{upload['id']}/parts/{number}")
            for name, value in (
                ("Authorization", f"Bearer {api.key}"),
                ("Content-Length", str(PART)),
                ("X-Content-SHA256", sha256(part_of(CONTENT, number))),
            ):
                connection.putheader(name, value)
            connection.endheaders(part_of(CONTENT, 1)[:5000])
            if not vanishes:
                assert connection.getresponse().status == 408
            connection.close()
        for number in (1, 2):
            while (answer := put(client, upload, number)).status_code == 409:
                pass
            assert answer.status_code == 200


class TestReadingOn:
    """The whole file's digest is taken while parts arrive."""

    def test_only_what_followed_a_gap_is_left_to_read(self, api: Api, client: httpx.Client) -> None:
        upload, running = start(client), RunningDigest()
        for number, read in ((1, PART), (3, PART), (2, len(CONTENT))):
            put(client, upload, number)
            advance(api, running, upload)
            sha, size = running.of(parts(api, upload))
            assert (size, sha.hexdigest()) == (read, sha256(CONTENT[:read]))

    def test_a_part_that_came_again_is_read_again(self, api: Api, client: httpx.Client) -> None:
        upload, running = sent(client), RunningDigest()
        advance(api, running, upload)
        changed = CONTENT[:PART] + bytes(PART) + CONTENT[2 * PART :]
        assert send(client, upload, 2, bytes(PART)).status_code == 200
        assert running.of(parts(api, upload))[1] == 0
        begin(api, upload)
        complete(api.database, api.store, Staging(api.settings.upload_dir), upload["id"], running)
        assert client.get(f"/v1/uploads/{upload['id']}").json()["sha256"] == sha256(changed)

    def test_a_part_that_comes_again_meanwhile_does_not_count(
        self, api: Api, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upload, running = sent(client), RunningDigest()
        read = Staging.read

        def changing(staging: Staging, *arguments: Any) -> Iterator[memoryview]:
            yield from read(staging, *arguments)
            send(client, upload, 1, bytes(PART))

        monkeypatch.setattr(Staging, "read", changing)
        advance(api, running, upload)
        assert running.of(parts(api, upload))[1] == 0

    def test_a_fault_in_it_costs_nothing_but_time(self, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("the database is away")

        monkeypatch.setattr(RunningDigest, "advance", fail)
        answer = finish(client, sent(client))
        assert (answer.status_code, answer.json()["sha256"]) == (200, sha256(CONTENT))

    def test_a_file_that_is_gone_ends_it(self, api: Api, client: httpx.Client) -> None:
        upload, running = sent(client), RunningDigest()
        Staging(api.settings.upload_dir).remove(upload["id"])
        advance(api, running, upload)
        assert running.of(parts(api, upload))[1] == 0


class TestAfterACrash:
    """Completion is cut off at a step; repeating it goes on from there."""

    def test_after_the_file_has_moved_into_the_store(
        self, api: Api, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upload = sent(client, b"moved" * 5000)
        staging = Staging(api.settings.upload_dir)
        begin(api, upload)
        monkeypatch.setattr("app.artifacts.completing._finish", crash)
        with pytest.raises(KeyboardInterrupt):
            complete(api.database, api.store, staging, upload["id"], RunningDigest())
        monkeypatch.undo()
        assert client.get(f"/v1/uploads/{upload['id']}").json()["status"] == "completing"
        assert put(client, upload, 1, b"moved" * 5000).json()["code"] == "upload_completing"
        assert finish(client, upload).json()["sha256"] == sha256(b"moved" * 5000)

    def test_after_which_the_disk_lost_a_part(self, api: Api, client: httpx.Client) -> None:
        content = b"torn page" * 3000
        upload = sent(client, content, sha256=sha256(content))
        with Staging(api.settings.upload_dir).path(upload["id"]).open("r+b") as file:
            file.seek(PART + 10)
            file.write(bytes(50))
        with restarted(api) as another:
            answer = finish(another, upload)
        assert (answer.status_code, answer.json()["code"]) == (409, "parts_missing")
        assert [part["number"] for part in client.get(f"/v1/uploads/{upload['id']}").json()["parts"]] == [1, 3]
        put(client, upload, 2, content)
        assert finish(client, upload).json()["sha256"] == sha256(content)

    def test_after_which_the_disk_lost_all_of_it(self, api: Api, client: httpx.Client, tmp_path: Path) -> None:
        content = b"lost" * 5000
        upload = sent(client, content, sha256=sha256(content))
        Staging(api.settings.upload_dir).remove(upload["id"])
        assert finish(client, upload).json()["code"] == "parts_missing"
        for number in (1, 2):
            put(client, upload, number, content)
        assert finish(client, upload).status_code == 200


@contextmanager
def restarted(api: Api) -> Iterator[httpx.Client]:
    """A client of another process's API, which has seen no part arrive."""
    with serving(api.settings, api.database) as url, replace(api, url=url).client() as client:
        yield client


def advance(api: Api, running: RunningDigest, upload: dict[str, Any]) -> None:
    running.advance(api.database, Staging(api.settings.upload_dir), upload["id"])


def parts(api: Api, upload: dict[str, Any]) -> Sequence[UploadPartRow]:
    with api.database.transaction() as session:
        query = select(UploadPartRow).where(UploadPartRow.upload_id == upload["id"])
        return session.scalars(query.order_by(UploadPartRow.number)).all()


def begin(api: Api, upload: dict[str, Any]) -> None:
    with api.database.transaction() as session:
        session.execute(update(UploadRow).where(UploadRow.id == upload["id"]).values(status="completing"))


def expire(api: Api, upload: dict[str, Any]) -> None:
    over = func.clock_timestamp() - timedelta(seconds=1)
    with api.database.transaction() as session:
        session.execute(update(UploadRow).where(UploadRow.id == upload["id"]).values(expires_at=over))


def crash(*_: object) -> None:
    raise KeyboardInterrupt
