"""Keys, migrations and the guards of `serve`."""

from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from app.db import Database
from app.errors import AuthenticationError, InvalidInputError
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
    database = Database(url)
    with database.transaction() as session:
        assert authenticate(session, key).scopes == {"read"}
    assert run("keys", "list").split() == [key.split("_")[1], "vision", "read", "valid", "ci"]
    run("keys", "revoke", key.split("_")[1])
    assert "revoked" in run("keys", "list")
    with database.transaction() as session, pytest.raises(AuthenticationError):
        authenticate(session, key)
    database.dispose()


def test_migrating_twice_is_migrating_once(url: str) -> None:
    assert run("migrate") == run("migrate") == "The database is up to date."


def test_keyless_is_for_loopback_only(url: str) -> None:
    with pytest.raises(InvalidInputError, match="let everybody in"):
        run("serve", "--keyless", "--host", "0.0.0.0")
