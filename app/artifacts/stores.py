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
    return LocalBlobStore(settings.blob_dir, announce)
