"""A job's process tries each forbidden thing, and each thing that it must be able to do."""

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import make_url
from structlog.testing import capture_logs

from app.artifacts.store import LocalBlobStore
from worker import sandbox
from worker.sandbox import Layer, Report, SandboxUnavailableError, look, probe
from worker.workspace import _provide

ESCAPES = Path(__file__).with_name("escapes.py")
CONTENT = b"weights" * 1000
REFUSED = "PermissionError"
REFUSALS = {
    "read the API key": {REFUSED},
    "read another job's order": {REFUSED},
    "list the data folder": {REFUSED},
    "read the worker's environment": {REFUSED},
    "read the worker's memory": {REFUSED},
    "reach the private Postgres": {REFUSED},
    "reach a server": {REFUSED},
    "make a datagram socket": {REFUSED},
    "signal the worker": {REFUSED},
    "signal the group": {REFUSED},
    "start a program": {REFUSED},
    "fork": {REFUSED},
    "fork without end": {"0"},
    "outlive the worker": {REFUSED},
    "leave the session": {REFUSED},
    "get a namespace": {REFUSED},
    "attach shared memory": {REFUSED},
    "write beside the outputs": {REFUSED},
    "write elsewhere": {REFUSED},
    "make a link in the outputs": {REFUSED},
    "link an input into the outputs": {"OSError", REFUSED},
    "remove the outputs folder": {REFUSED},
    "write into an input": {REFUSED},
    "cut an input short": {REFUSED},
    "cut an input short, opening it": {REFUSED},
    "let an input be written": {REFUSED},
    "remove an input": {REFUSED},
    "write a file that is too large": {"OSError"},
    "take too much memory": {"MemoryError"},
    "open too many files": {"OSError"},
    "raise a limit": {"ValueError", REFUSED},
}
HARMLESS = [
    "read the API key",
    "read another job's order",
    "read the worker's environment",
    "reach the private Postgres",
    "reach a server",
    "signal the worker",
    "start a program",
    "fork",
    "write beside the outputs",
    "make a link in the outputs",
    "write into an input",
    "write a file that is too large",
    "open too many files",
    "get a namespace",
]
"""What a process that is not shut in can do, without harm to anybody: so the tries themselves are good."""


@pytest.fixture(scope="module")
def about(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[dict[str, Any]]:
    """An attempt's folder with a stored file as its input, and the things that it must not reach."""
    data = tmp_path_factory.mktemp("data")
    root, neighbour = data / "work" / "job" / "attempt-1", data / "work" / "other" / "attempt-1"
    for folder in ("inputs", "outputs", "tmp", "checkpoints"):
        (root / folder).mkdir(parents=True)
    neighbour.mkdir(parents=True)
    for place in (root, neighbour):
        (place / "order.json").write_text("{}")
    (data / "api-key").write_text("nss_secret")
    upload = data / "upload"
    upload.write_bytes(CONTENT)
    store = LocalBlobStore(data / "blobs")
    blob = store.path(store.put_file(upload).digest)
    _provide(blob, root / "inputs" / "model")
    folder = make_url(postgres_url).query["host"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {
            "root": str(root),
            "blob": str(blob),
            "secret": str(data / "api-key"),
            "neighbour": str(neighbour / "order.json"),
            "elsewhere": str(data / "elsewhere.txt"),
            "postgres": str(next(Path(str(folder)).glob(".s.PGSQL.*[0-9]"))),
            "port": server.getsockname()[1],
            "only": None,
        }


def tried(how: str, about: dict[str, Any]) -> dict[str, str]:
    command = [sys.executable, str(ESCAPES), how, json.dumps(about)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    happened: dict[str, str] = json.loads(run.stdout)
    return happened


@pytest.fixture(scope="module")
def happened(about: dict[str, Any]) -> dict[str, str]:
    """What came of every try of a process that is shut in."""
    return tried("shut", about)


@pytest.mark.parametrize("name", REFUSALS)
def test_what_a_job_must_not_do_is_refused(happened: dict[str, str], name: str) -> None:
    assert happened[name] in REFUSALS[name]


def test_a_job_can_do_its_duties(happened: dict[str, str]) -> None:
    done = {name: what for name, what in happened.items() if name not in REFUSALS}
    assert len(done) == 10
    assert not [name for name, what in done.items() if what.endswith("Error")]
    assert done["leave no core"] == "(0, 0)"


def test_a_worker_without_the_superusers_rights_shuts_jobs_in_as_well(about: dict[str, Any]) -> None:
    happened = tried("poor", about)
    assert happened.pop("layers that are off") == []
    assert {name for name, what in happened.items() if name in REFUSALS and what not in REFUSALS[name]} == set()
    assert not [name for name, what in happened.items() if name not in REFUSALS and what.endswith("Error")]


def test_a_stored_file_that_is_an_input_stays_as_it_is(about: dict[str, Any], happened: dict[str, str]) -> None:
    blob, place = Path(about["blob"]), Path(about["root"], "inputs", "model")
    assert blob.samefile(place)
    assert blob.read_bytes() == CONTENT
    assert stat.S_IMODE(blob.stat().st_mode) == 0o444


def test_the_tries_succeed_where_nothing_holds_them_back(about: dict[str, Any], happened: dict[str, str]) -> None:
    free = tried("free", about | {"only": HARMLESS})
    failed = {name for name, what in free.items() if what.endswith("Error")}
    assert failed <= ({"write into an input"} if os.geteuid() else set())


def test_nothing_that_was_tried_is_left(about: dict[str, Any], happened: dict[str, str]) -> None:
    assert not [process for process in psutil.Process().children() if str(ESCAPES) in process.cmdline()]
    assert not Path(about["elsewhere"]).exists()


def test_without_a_shield_inputs_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.workspace.shields_inputs", lambda: False)
    (tmp_path / "blob").write_bytes(CONTENT)
    _provide(tmp_path / "blob", tmp_path / "input")
    assert not (tmp_path / "blob").samefile(tmp_path / "input")
    assert (tmp_path / "input").read_bytes() == CONTENT


def test_a_worker_says_what_holds() -> None:
    with capture_logs() as logs:
        report = look("required")
    assert {name for name, layer in report.layers.items() if layer.on} >= {"limits", "privileges", "files", "network"}
    (entry,) = (entry for entry in logs if entry["event"] == "worker.sandbox")
    assert {name: entry[name] for name in report.layers} == report.to_dict()


def test_a_worker_that_cannot_shut_jobs_in_refuses_if_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Report(probe().layers | {"files": Layer(False, "Landlock refused by Linux 5.4: not implemented")})
    monkeypatch.setattr(sandbox, "probe", lambda: missing)
    with capture_logs() as logs:
        assert look("best") is missing
    assert [(entry["log_level"], entry["off"]) for entry in logs] == [("warning", ["files"])]
    with pytest.raises(SandboxUnavailableError, match=r"files: Landlock refused by Linux 5\.4") as refused:
        look("required")
    assert "NEUSEMSLICE_SANDBOX=best" in refused.value.hint


def test_a_process_with_threads_is_not_half_shut_in() -> None:
    code = """
import sys, threading, time
from pathlib import Path
from worker.order import Limits
from worker.sandbox import SandboxUnavailableError, confine
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
try:
    confine(Path(), Limits(memory_bytes=2**30, file_bytes=2**20, threads=1))
except SandboxUnavailableError as error:
    print(error.message)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "2 threads run already, and the others would stay free.\n"
