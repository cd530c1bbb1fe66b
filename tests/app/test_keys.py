"""API keys."""

import pytest

from app.db import Database
from app.errors import AuthenticationError
from app.projects.keys import authenticate, create_key, list_keys, revoke_key
from app.projects.orm import ApiKeyRow


def test_a_key_opens_its_project_with_its_scopes(database: Database) -> None:
    with database.transaction() as session:
        key = create_key(session, project="vision", name="ci", scopes=["read"])
        other = create_key(session, project="audio", name="ci")
        principal = authenticate(session, key)
        assert principal.scopes == {"read"}
        assert principal.project_id != authenticate(session, other).project_id


def test_the_secret_is_not_stored(database: Database) -> None:
    with database.transaction() as session:
        key = create_key(session, project="p", name="")
        (row,) = session.query(ApiKeyRow).all()
        assert key.split("_")[2].encode() not in row.secret_sha256
        assert len(row.secret_sha256) == 32


@pytest.mark.parametrize("spoil", [lambda key: key[:-1] + "0" * 2, lambda _: "nss_x_y", lambda _: "", lambda _: "é"])
def test_a_wrong_key_opens_nothing(database: Database, spoil) -> None:
    with database.transaction() as session:
        key = create_key(session, project="p", name="")
        with pytest.raises(AuthenticationError):
            authenticate(session, spoil(key))


def test_expired_and_revoked_keys_open_nothing(database: Database) -> None:
    with database.transaction() as session:
        expired = create_key(session, project="p", name="", valid_days=-1)
        revoked = create_key(session, project="p", name="")
        authenticate(session, revoked)
        revoke_key(session, revoked.split("_")[1])
        for key in (expired, revoked):
            with pytest.raises(AuthenticationError):
                authenticate(session, key)
        assert len(list_keys(session)) == 2
