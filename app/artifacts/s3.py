"""Blobs in an S3 bucket, or in anything with its API: `prefix/ab/abcdef…`.

Files go up and come down in pieces, never through memory as a whole. What comes down is checked against its digest. The
credentials are those that boto3 finds in the standard AWS environment.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from app.artifacts.cache import BlobCache
from app.artifacts.store import Announce, Blob, StoreUnavailableError, is_digest, read_blob, received
from app.errors import InvalidInputError

MIB = 1024 * 1024
URL_LIFE_S = 900
_TRANSFER = TransferConfig(multipart_threshold=64 * MIB, multipart_chunksize=64 * MIB, max_concurrency=4)
_NETWORK = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 5, "mode": "standard"}}
_MISSING = ("404", "NoSuchKey", "NotFound")


@dataclass(frozen=True)
class S3Location:
    """Where in which S3."""

    bucket: str
    prefix: str
    endpoint_url: str | None = None

    @classmethod
    def parse(cls, url: str, endpoint_url: str | None = None) -> "S3Location":
        """From `s3://bucket/prefix`.

        Raises:
            InvalidInputError: it is no such address.
        """
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise InvalidInputError(
                f"NEUSEMSLICE_STORE_URL is {url!r}, which names no bucket.", hint="Write it as s3://bucket/prefix."
            )
        prefix = parts.path.strip("/")
        return cls(parts.netloc, f"{prefix}/" if prefix else "", endpoint_url)


class S3BlobStore:
    """See BlobStore."""

    def __init__(self, location: S3Location, cache: BlobCache, announce: Announce = lambda _: None) -> None:
        self._location = location
        self._cache = cache
        self._announce = announce
        style = {"addressing_style": "path"} if location.endpoint_url else {}
        config = Config(signature_version="s3v4", s3=style, **_NETWORK)
        self._s3: Any = boto3.client("s3", endpoint_url=location.endpoint_url, config=config)

    def put_stream(self, stream: BinaryIO, *, max_bytes: int) -> Blob:
        """See BlobStore."""
        with received(stream, self._cache.incoming, max_bytes=max_bytes) as (temporary, blob):
            self.adopt(temporary, blob)
        return blob

    def put_file(self, source: Path) -> Blob:
        """See BlobStore."""
        blob = read_blob(source)
        self.adopt(source, blob)
        return blob

    def adopt(self, source: Path, blob: Blob) -> None:
        """See BlobStore."""
        self._announce(blob)
        with self._reaching():
            if self._find_size(blob.digest) != blob.size_bytes:
                self._s3.upload_file(str(source), self._location.bucket, self._key(blob.digest), Config=_TRANSFER)

    def path(self, digest: str) -> Path:
        """See BlobStore; fetched into this machine's cache if it is not there."""
        known = self._cache.find(digest)
        if known is not None:
            return known
        self._cache.make_room(self.size_bytes(digest))
        with self._reaching():
            body = self._s3.get_object(**self._object(digest))["Body"]
            with body, received(body, self._cache.incoming, max_bytes=2**63) as (temporary, blob):
                if blob.digest != digest:
                    raise LookupError(f"the store has other bytes under {digest}: {blob.digest}")
                self._cache.adopt(temporary, blob)
        return self._cache.path(digest)

    def size_bytes(self, digest: str) -> int:
        """See BlobStore."""
        with self._reaching():
            size = self._find_size(digest)
        if size is None:
            raise LookupError(f"the store has lost {digest}")
        return size

    def download_url(self, digest: str, *, filename: str, media_type: str) -> str:
        """See BlobStore."""
        shown = {
            "ResponseContentDisposition": f'attachment; filename="{_plain(filename)}"',
            "ResponseContentType": media_type,
        }
        with self._reaching():
            url: str = self._s3.generate_presigned_url(
                "get_object", Params=self._object(digest) | shown, ExpiresIn=URL_LIFE_S
            )
        return url

    def blobs(self) -> Iterator[Blob]:
        """See BlobStore."""
        pages = self._s3.get_paginator("list_objects_v2")
        with self._reaching():
            for page in pages.paginate(Bucket=self._location.bucket, Prefix=self._location.prefix):
                for item in page.get("Contents", ()):
                    digest = item["Key"].rpartition("/")[2]
                    if is_digest(digest) and item["Key"] == self._key(digest):
                        yield Blob(digest, item["Size"])

    def remove(self, digest: str) -> None:
        """See BlobStore."""
        with self._reaching():
            self._s3.delete_object(**self._object(digest))
        self._cache.remove(digest)

    def _find_size(self, digest: str) -> int | None:
        try:
            size: int = self._s3.head_object(**self._object(digest))["ContentLength"]
        except ClientError as error:
            if error.response["Error"]["Code"] in _MISSING:
                return None
            raise
        return size

    def _object(self, digest: str) -> dict[str, str]:
        return {"Bucket": self._location.bucket, "Key": self._key(digest)}

    def _key(self, digest: str) -> str:
        return f"{self._location.prefix}{digest[:2]}/{digest}"

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error) as error:
            raise StoreUnavailableError(errno.EIO, f"the object store {self._location.bucket}: {error}") from error


def _plain(filename: str) -> str:
    """As it can stand in a quoted header."""
    return re.sub(r"[^ !#-\[\]-~]", "_", filename)
