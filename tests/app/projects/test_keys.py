"""API keys."""

from datetime import timedelta

import pytest
from sqlalchemy import text, update

from app.db import Database
from app.errors import AuthenticationError, ConflictError, ForbiddenError
from app.projects.keys import (
    authenticate,
    create_key,
    ensure_project,
    find_key,
    issue_key,
    keys_of,
    list_keys,
    revoke_key,
    rotate_key,
)
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


def test_after_a_rotation_both_secrets_work_until_the_grace_is_over(database: Database) -> None:
    with database.transaction() as session:
        first = create_key(session, project="p", name="", valid_days=10)
        row = find_key(session, first.split("_")[1])
        second = rotate_key(session, row, grace=timedelta(hours=1))
        assert second != first
        assert 3500 < (authenticate(session, first).valid_s or 0) <= 3600
        assert (authenticate(session, second).valid_s or 0) > 9 * 86400
        third = rotate_key(session, row, grace=timedelta(0))
        assert authenticate(session, third).key_id == row.id
        for dead in (first, second):
            with pytest.raises(AuthenticationError):
                authenticate(session, dead)


@pytest.mark.parametrize("ended", ["revoked", "expired"])
def test_a_key_that_has_ended_cannot_be_rotated(database: Database, ended: str) -> None:
    with database.transaction() as session:
        key = create_key(session, project="p", name="", valid_days=-1 if ended == "expired" else None)
        key_id = key.split("_")[1]
        if ended == "revoked":
            revoke_key(session, key_id)
        with pytest.raises(ConflictError):
            rotate_key(session, find_key(session, key_id), grace=timedelta(hours=1))


def test_a_key_gives_no_scope_that_its_maker_lacks(database: Database) -> None:
    with database.transaction() as session:
        project_id = ensure_project(session, "p")
        row, _ = issue_key(session, project_id, name="", scopes=["write"])
        with pytest.raises(ForbiddenError, match="write"):
            issue_key(session, project_id, name="", scopes=["read", "write"], giver={"read", "admin"})
        with pytest.raises(ForbiddenError, match="write"):  # the new secret would be in its hands
            rotate_key(session, row, grace=timedelta(0), giver={"read", "admin"})


def test_a_use_is_noted_at_most_once_a_minute(database: Database) -> None:
    with database.transaction() as session:
        key = create_key(session, project="p", name="")

    def version_after_use() -> str:
        with database.transaction() as session:
            authenticate(session, key)
        with database.transaction() as session:
            return session.execute(text("SELECT xmin::text FROM api_keys WHERE last_used_at IS NOT NULL")).scalar_one()

    first = version_after_use()
    assert version_after_use() == first
    with database.transaction() as session:
        session.execute(update(ApiKeyRow).values(last_used_at=ApiKeyRow.last_used_at - timedelta(seconds=61)))
    assert version_after_use() != first


def test_the_keys_of_a_project_come_page_by_page(database: Database) -> None:
    with database.transaction() as session:
        project_id, other_id = ensure_project(session, "p"), ensure_project(session, "other")
        ids = [issue_key(session, project_id, name="", scopes=["read"])[0].id for _ in range(5)]
        stranger = issue_key(session, other_id, name="", scopes=["read"])[0].id
        found, before = [], None
        while page := keys_of(session, project_id, before=before, limit=2):
            found += [row.id for row in page]
            before = found[-1]
        assert found == ids[::-1]
        assert keys_of(session, project_id, before=stranger, limit=2) == []
