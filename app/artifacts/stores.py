"""Which store this deployment has."""

from app.artifacts.blobs import BlobRegister
from app.artifacts.store import BlobStore, LocalBlobStore
from app.db import Database
from app.settings import Settings


def make_store(settings: Settings, database: Database, *, patience_s: float = 0.0) -> BlobStore:
    """The store that the settings name. What is put is announced, waiting up to `patience_s` for the database.

    Raises:
        InvalidInputError: the settings name none that there is.
    """
    announce = BlobRegister(database, patience_s=patience_s)
    if settings.store_url is None:
        return LocalBlobStore(settings.blob_dir, announce)
    from app.artifacts.cache import BlobCache
    from app.artifacts.s3 import S3BlobStore, S3Location  # boto3 takes a while to import

    location = S3Location.parse(settings.store_url, settings.store_endpoint_url)
    return S3BlobStore(location, BlobCache(settings.cache_dir, max_bytes=settings.store_cache_bytes), announce)
