"""The content-addressed store."""

import hashlib
import io
from pathlib import Path

import pytest

from app.artifacts.store import LocalBlobStore
from app.errors import TooLargeError


def test_a_stream_is_found_by_its_sha256(tmp_path: Path) -> None:
    store, content = LocalBlobStore(tmp_path), b"neurons" * 1000
    blob = store.put_stream(io.BytesIO(content), max_bytes=10**6)
    assert blob.digest == hashlib.sha256(content).hexdigest()
    assert blob.size_bytes == len(content)
    assert store.path(blob.digest).read_bytes() == content
    assert store.path(blob.digest).stat().st_mode & 0o222 == 0


def test_too_many_bytes_leave_nothing_behind(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    with pytest.raises(TooLargeError):
        store.put_stream(io.BytesIO(b"x" * 11), max_bytes=10)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_same_bytes_are_kept_once(tmp_path: Path) -> None:
    store, source = LocalBlobStore(tmp_path / "store"), tmp_path / "file"
    source.write_bytes(b"same")
    first = store.put_file(source)
    again = store.put_stream(io.BytesIO(b"same"), max_bytes=10)
    assert first == again
    assert len([path for path in (tmp_path / "store").rglob("*") if path.is_file()]) == 1
