"""What every store promises, asked of each; then what is only one's own."""

import hashlib
import io
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.artifacts import s3
from app.artifacts.cache import BlobCache
from app.artifacts.s3 import S3BlobStore, S3Location
from app.artifacts.store import Announce, Blob, BlobStore, LocalBlobStore, StoreUnavailableError
from app.artifacts.stores import make_store
from app.db import Database
from app.errors import InvalidInputError, TooLargeError
from app.ids import new_id
from app.settings import Settings
from tests.app.artifacts.conftest import BUCKET

CONTENT = b"neurons" * 1000
MakeStore = Callable[[Announce], BlobStore]


@pytest.fixture(params=["local", "s3"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    if request.param == "local":
        return lambda announce: LocalBlobStore(tmp_path / "store", announce)
    location = S3Location(BUCKET, f"{new_id('test')}/", request.getfixturevalue("s3_endpoint"))
    return lambda announce: S3BlobStore(location, BlobCache(tmp_path / "cache", max_bytes=10**6), announce)


@pytest.fixture
def store(make: MakeStore) -> BlobStore:
    return make(lambda _: None)


def blob_of(content: bytes) -> Blob:
    return Blob(hashlib.sha256(content).hexdigest(), len(content))


class TestEveryStore:
    def test_a_stream_is_found_by_its_sha256(self, store: BlobStore) -> None:
        blob = store.put_stream(io.BytesIO(CONTENT), max_bytes=10**6)
        assert blob == blob_of(CONTENT)
        assert store.size_bytes(blob.digest) == len(CONTENT)
        assert store.path(blob.digest).read_bytes() == CONTENT
        assert store.path(blob.digest).stat().st_mode & 0o222 == 0

    def test_a_file_is_found_by_its_sha256(self, store: BlobStore, tmp_path: Path) -> None:
        for put in (store.put_file, lambda path: store.adopt(path, blob_of(CONTENT))):
            (tmp_path / "file").write_bytes(CONTENT)
            put(tmp_path / "file")
            assert store.path(blob_of(CONTENT).digest).read_bytes() == CONTENT

    def test_too_many_bytes_leave_nothing_behind(self, store: BlobStore, tmp_path: Path) -> None:
        with pytest.raises(TooLargeError):
            store.put_stream(io.BytesIO(b"x" * 11), max_bytes=10)
        assert list(store.blobs()) == []
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []

    def test_the_same_bytes_are_kept_once(self, store: BlobStore, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"same")
        assert store.put_file(tmp_path / "file") == store.put_stream(io.BytesIO(b"same"), max_bytes=10)
        assert list(store.blobs()) == [blob_of(b"same")]

    def test_what_was_removed_is_lost_and_can_be_put_again(self, store: BlobStore) -> None:
        blob = store.put_stream(io.BytesIO(CONTENT), max_bytes=10**6)
        assert store.path(blob.digest).exists()
        for _ in range(2):
            store.remove(blob.digest)
        assert list(store.blobs()) == []
        with pytest.raises(LookupError):
            store.size_bytes(blob.digest)
        store.put_stream(io.BytesIO(CONTENT), max_bytes=10**6)
        assert store.path(blob.digest).read_bytes() == CONTENT

    def test_blobs_are_announced_before_they_are_there(self, make: MakeStore, tmp_path: Path) -> None:
        there: list[list[Blob]] = []
        announced: list[Blob] = []

        def announce(blob: Blob) -> None:
            announced.append(blob)
            there.append(list(store.blobs()))

        store = make(announce)
        store.put_stream(io.BytesIO(CONTENT), max_bytes=10**6)
        (tmp_path / "file").write_bytes(CONTENT)
        store.put_file(tmp_path / "file")
        assert announced == [blob_of(CONTENT)] * 2
        assert there == [[], [blob_of(CONTENT)]]


class TestS3:
    @pytest.fixture
    def store(self, s3_endpoint: str, tmp_path: Path) -> S3BlobStore:
        location = S3Location(BUCKET, f"{new_id('test')}/", s3_endpoint)
        return S3BlobStore(location, BlobCache(tmp_path / "cache", max_bytes=10**6))

    def test_anybody_can_download_by_the_signed_address_and_by_no_other(self, store: S3BlobStore) -> None:
        blob = store.put_stream(io.BytesIO(CONTENT), max_bytes=10**6)
        url = store.download_url(blob.digest, filename='a "b" ü.json', media_type="application/json")
        answer = httpx.get(url, headers={"Range": "bytes=7-13"})
        assert (answer.status_code, answer.content) == (206, CONTENT[7:14])
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["content-disposition"] == 'attachment; filename="a _b_ _.json"'
        assert "X-Amz-Signature" in url
        assert f"X-Amz-Expires={s3.URL_LIFE_S}" in url

    def test_a_large_file_goes_up_in_pieces(
        self, store: S3BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        five = 5 * 1024 * 1024
        pieces = s3.TransferConfig(multipart_threshold=five, multipart_chunksize=five)
        monkeypatch.setattr(s3, "_TRANSFER", pieces)
        (tmp_path / "large").write_bytes(os.urandom(five * 2 + 1))
        blob = store.put_file(tmp_path / "large")
        assert store._s3.head_object(**store._object(blob.digest))["ETag"].endswith('-3"')
        assert store.path(blob.digest).read_bytes() == (tmp_path / "large").read_bytes()

    def test_other_bytes_under_a_digest_are_never_handed_on(self, store: S3BlobStore, tmp_path: Path) -> None:
        blob = blob_of(CONTENT)
        store._s3.put_object(**store._object(blob.digest), Body=CONTENT[:-1] + b"x")
        with pytest.raises(LookupError, match="other bytes"):
            store.path(blob.digest)
        assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []

    def test_what_is_in_the_cache_is_not_fetched_again(self, store: S3BlobStore) -> None:
        blob = store.put_stream(io.BytesIO(CONTENT), max_bytes=10**6)
        first = store.path(blob.digest)
        store._s3.delete_object(**store._object(blob.digest))
        assert store.path(blob.digest) == first

    def test_objects_of_others_in_the_bucket_are_left_alone(self, store: S3BlobStore) -> None:
        blob = store.put_stream(io.BytesIO(CONTENT), max_bytes=10**6)
        for key in ("notes.txt", f"other/{blob.digest}"):
            store._s3.put_object(Bucket=BUCKET, Key=store._location.prefix + key, Body=b"x")
        assert list(store.blobs()) == [blob]

    def test_a_server_that_is_away_is_a_reason_to_try_again(
        self, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(s3, "_NETWORK", {"connect_timeout": 1, "retries": {"max_attempts": 1}})
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
            away = S3BlobStore(S3Location(BUCKET, "", address), BlobCache(tmp_path, max_bytes=10))
            for action in (lambda: away.path("a" * 64), lambda: list(away.blobs()), lambda: away.remove("a" * 64)):
                with pytest.raises(StoreUnavailableError):
                    action()


def test_the_cache_forgets_what_was_used_longest_ago_and_nothing_in_use(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, max_bytes=25)
    blobs = [cache.put_stream(io.BytesIO(bytes([number]) * 10), max_bytes=10) for number in range(3)]
    cache.make_room(0)
    assert len(list(cache.blobs())) == 3
    for blob, ago_s in zip(blobs, (100, 300, 200), strict=True):
        then = time.time() - ago_s
        os.utime(cache.path(blob.digest), (then, then))
    cache.make_room(0)
    assert set(cache.blobs()) == {blobs[0], blobs[2]}
    assert cache.find(blobs[2].digest) is not None
    cache.make_room(10)
    assert set(cache.blobs()) == {blobs[2]}
    assert cache.find(blobs[1].digest) is None


@pytest.mark.parametrize("url", ["s3://", "s3:/bucket", "https://bucket/x", "bucket", "s3://bucket/x?y"])
def test_an_address_that_names_no_bucket_is_refused(url: str, settings: Settings, database: Database) -> None:
    with pytest.raises(InvalidInputError, match="names no bucket"):
        make_store(settings.model_copy(update={"store_url": url}), database)


@pytest.mark.parametrize(("url", "prefix"), [("s3://b", ""), ("s3://b/", ""), ("s3://b/x/y/", "x/y/")])
def test_the_prefix_of_an_address(url: str, prefix: str) -> None:
    assert S3Location.parse(url) == S3Location("b", prefix)


def test_a_file_comes_from_another_file_system(tmp_path: Path) -> None:
    """As when the work folder is on a disk of its own."""
    store = LocalBlobStore(tmp_path / "store")
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as elsewhere:
        apart = os.fstat(elsewhere.fileno()).st_dev != tmp_path.stat().st_dev
        assert apart, "The temporary folder is in memory itself: give pytest a --basetemp on a disk."
        elsewhere.write(CONTENT)
        elsewhere.flush()
        blob = store.put_file(Path(elsewhere.name))
    assert store.path(blob.digest).read_bytes() == CONTENT
    assert list((tmp_path / "store" / "incoming").iterdir()) == []
