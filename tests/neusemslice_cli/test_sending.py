"""The client sends large files in parts, and goes on after the service was away."""

import hashlib
import os
from pathlib import Path

import pytest

from app.db import Database
from app.projects.keys import create_key
from app.settings import Settings
from neusemslice_cli import client as client_module
from neusemslice_cli import sending
from neusemslice_cli.answers import ServiceAnswerError
from neusemslice_cli.client import Client, UploadInterruptedError
from tests.app.api.conftest import serving

PART = 50_000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", upload_part_bytes=PART)


@pytest.fixture
def key(database: Database) -> str:
    with database.transaction() as session:
        return create_key(session, project="p", name="")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "large.npz"
    path.write_bytes(os.urandom(PART * 7 + 1))
    return path


def test_a_file_arrives_whole_and_its_progress_is_told(
    settings: Settings, database: Database, key: str, file: Path
) -> None:
    told: list[tuple[int, int]] = []
    with serving(settings, database) as url, Client(url, key) as client:
        upload = client.upload_file(file, on_progress=lambda done, size: told.append((done, size)))
        assert (upload["status"], upload["name"]) == ("complete", "large.npz")
        assert upload["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    size = file.stat().st_size
    assert sorted(told) == told
    assert (told[0], told[-1], len(told)) == ((0, size), (size, size), 9)


def test_an_upload_goes_on_once_the_service_is_back(
    settings: Settings, database: Database, key: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "PARTS_AT_ONCE", 1)
    monkeypatch.setattr(sending, "TRIES", 1)
    with serving(settings, database) as url, Client(url, key) as client:
        away = Client("http://127.0.0.1:9", key)

        def lose_the_service(done: int, _: int) -> None:
            if done >= 3 * PART:
                running[0]._request = away._request

        running: list[sending.Sending] = []
        run = sending.Sending.run
        monkeypatch.setattr(sending.Sending, "run", lambda self: running.append(self) or run(self))
        with pytest.raises(UploadInterruptedError) as interrupted:
            client.upload_file(file, on_progress=lose_the_service)
        away.__exit__()
    with serving(settings, database) as url, Client(url, key) as client:
        upload_id = interrupted.value.upload_id
        assert len(client.get(f"/v1/uploads/{upload_id}")["parts"]) == 3
        told: list[int] = []
        upload = client.upload_file(file, upload_id=upload_id, on_progress=lambda done, _: told.append(done))
        assert upload["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert (told[0], len(told)) == (3 * PART, 6)


def test_a_refusal_ends_it(settings: Settings, database: Database, key: str, file: Path) -> None:
    small = settings.model_copy(update={"max_upload_bytes": PART})
    with serving(small, database) as url, Client(url, key) as client:
        with pytest.raises(ServiceAnswerError, match="too_large"):
            client.upload_file(file)
        with pytest.raises(ServiceAnswerError, match="not_found"):
            client.upload_file(file, upload_id="upl_" + "0" * 26)


def test_large_models_and_datasets_go_in_parts(
    settings: Settings, database: Database, key: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "FORM_MAX_BYTES", PART)
    with serving(settings, database) as url, Client(url, key) as client:
        monkeypatch.setattr(client, "get", lambda _, **__: {"status": "ready", "id": "as it was inspected"})
        assert client.upload_dataset(file, {}, name="d") == {"status": "ready", "id": "as it was inspected"}
        monkeypatch.undo()
        (dataset,) = client.get("/v1/datasets")["data"]
        assert (dataset["name"], dataset["size_bytes"]) == ("d", file.stat().st_size)
