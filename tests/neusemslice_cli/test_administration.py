"""Keys, migrations and the guards of `serve`."""

import json
import os
import pwd
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from app.db import Database
from app.errors import AuthenticationError, ConflictError, InvalidInputError
from app.projects.keys import authenticate
from neusemslice_cli.main import app


@pytest.fixture
def url(new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty migrated database, which the commands find in their environment."""
    url = new_database()
    monkeypatch.setenv("DATABASE_URL", url)
    return url


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_a_key_is_made_shown_listed_and_revoked(url: str) -> None:
    key = run("keys", "create", "--project", "vision", "--name", "ci", "--read-only")
    assert run("keys", "list").split() == [key.split("_")[1], "vision", "read", "valid", "unused", "ci"]
    database = Database(url)
    with database.transaction() as session:
        assert authenticate(session, key).scopes == {"read"}
    run("keys", "revoke", key.split("_")[1])
    assert "revoked" in run("keys", "list")
    with database.transaction() as session, pytest.raises(AuthenticationError):
        authenticate(session, key)
    database.dispose()


def test_a_rotated_key_is_another_secret_of_the_same_key(url: str) -> None:
    old = run("keys", "create", "--scope", "read", "--scope", "admin")
    new = run("keys", "rotate", old.split("_")[1], "--grace-hours", "0")
    assert new.split("_")[:2] == old.split("_")[:2]
    database = Database(url)
    with database.transaction() as session:
        assert authenticate(session, new).scopes == {"read", "admin"}
        with pytest.raises(AuthenticationError):
            authenticate(session, old)
    database.dispose()
    assert "used 20" in run("keys", "list", "--project", "default")
    assert run("keys", "list", "--project", "other") == ""


def test_a_project_is_made_limited_shown_and_deleted(url: str) -> None:
    project_id = run("projects", "create", "vision")
    run("projects", "set", "vision", "--max-queued", "4", "--max-stored", "2GiB", "--requests-per-minute", "600")
    run("projects", "set", "vision", "--max-running", "3")
    shown = run("projects", "set", "vision", "--max-queued", "unlimited")
    assert shown.splitlines()[-4:] == [
        "max_running_jobs: 3",
        "max_queued_jobs: unlimited",
        f"max_stored_bytes: {2 * 1024**3}",
        "requests_per_minute: 600",
    ]
    limits = f"running 0/3  queued 0/unlimited  stored 0/{2 * 1024**3}  requests/min 600"
    assert run("projects", "list") == f"{project_id}  vision  {limits}"
    with pytest.raises(ConflictError, match="already"):
        run("projects", "create", "vision")
    run("projects", "delete", "vision", "--yes")
    assert run("projects", "list") == ""
    assert run("projects", "create", "vision") != project_id


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--max-queued", "-1", "no whole number"),
        ("--max-queued", "3000000000", "no whole number"),
        ("--max-stored", "2 apples", "no number of bytes"),
        ("--max-stored", "9999999999TiB", "no number of bytes"),
        ("--requests-per-minute", "0", "lock the project out"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(option: str, value: str, said: str) -> None:
    result = CliRunner().invoke(app, ["projects", "set", "vision", option, value])
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_the_audit_log_names_the_user_and_no_secret(url: str) -> None:
    key = run("keys", "create", "--project", "vision", "--name", "ci")
    run("projects", "set", "vision", "--max-queued", "4")
    run("keys", "revoke", key.split("_")[1])
    rows = [json.loads(line) for line in run("audit", "--project", "vision").splitlines()]
    assert [row["action"] for row in rows[:2]] == ["key.revoke", "project.set_limits"]
    assert {row["action"] for row in rows[2:]} == {"key.create", "project.create"}
    assert {row["actor"] for row in rows} == {f"cli:{pwd.getpwuid(os.getuid()).pw_name}"}
    assert rows[1]["details"] == {"before": {"max_queued_jobs": None}, "after": {"max_queued_jobs": 4}}
    assert key.split("_")[2] not in json.dumps(rows)
    assert len(run("audit", "--object-id", key.split("_")[1]).splitlines()) == 2
    assert len(run("audit", "--limit", "1").splitlines()) == 1


def test_migrating_twice_is_migrating_once(url: str) -> None:
    assert run("migrate") == run("migrate") == "The database is up to date."


def test_keyless_is_for_loopback_only(url: str) -> None:
    with pytest.raises(InvalidInputError, match="let everybody in"):
        run("serve", "--keyless", "--host", "0.0.0.0")
