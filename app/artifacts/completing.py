"""How the parts of an upload become a blob: everything has been read once more before the store gets it.

Each step can be repeated after a crash. What was found is written down before the store gets the file, so that a
repetition that finds the file gone knows where it went.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.artifacts.blobs import renew
from app.artifacts.orm import UploadPartRow, UploadRow, UploadStatus
from app.artifacts.running_digest import RunningDigest
from app.artifacts.staging import StagedFile, Staging
from app.artifacts.store import Blob, BlobStore
from app.artifacts.uploads import not_as_declared
from app.db import Database
from app.errors import ConflictError

ShouldStop = Callable[[], bool]


class CompletionStoppedError(Exception):
    """The process is ending; a repetition goes on."""


def complete(
    database: Database,
    store: BlobStore,
    staging: Staging,
    upload_id: str,
    running: RunningDigest,
    should_stop: ShouldStop = lambda: False,
) -> None:
    """Verify an upload of which every part has arrived (its status is `completing`) and store it. What `running` has
    read already is not read again.

    Raises:
        ConflictError: somebody else is at it; or parts were damaged on the disk, and have to come again.
        DigestMismatchError: it is not the file that was declared.
        CompletionStoppedError: it had to stop.
    """
    with staging.whole(upload_id) as staged:
        with database.transaction() as session:
            upload, parts = _read(session, upload_id)
        if upload is None or upload.status == UploadStatus.COMPLETE:
            return
        if staged.size_bytes == upload.size_bytes:
            digest = _verified(database, upload, parts, staged, running, should_stop)
            with database.transaction() as session:
                session.execute(update(UploadRow).where(UploadRow.id == upload_id).values(digest=digest))
            store.adopt(staged.path, Blob(digest, upload.size_bytes))
        elif upload.digest is None or not _is_stored(store, upload.digest):
            raise _reopened(database, upload_id, [part.number for part in parts])
        with database.transaction() as session:
            _finish(session, upload_id)
    staging.remove(upload_id)


def _read(session: Session, upload_id: str) -> tuple[UploadRow | None, Sequence[UploadPartRow]]:
    query = select(UploadPartRow).where(UploadPartRow.upload_id == upload_id).order_by(UploadPartRow.number)
    return session.get(UploadRow, upload_id), session.scalars(query).all()


def _verified(
    database: Database,
    upload: UploadRow,
    parts: Sequence[UploadPartRow],
    staged: StagedFile,
    running: RunningDigest,
    should_stop: ShouldStop,
) -> str:
    """The file's SHA-256. Where it is not the declared one, the parts' own tell whether the disk is to blame."""
    staged.sync()
    sha256, start = running.of(parts)
    digest = _digest(sha256, staged.read(start, upload.size_bytes - start), should_stop)
    if upload.sha256 in (None, digest):
        return digest
    damaged = list(_damaged(upload, parts, staged, should_stop))
    if damaged:
        raise _reopened(database, upload.id, damaged)
    with database.transaction() as session:
        values = {"status": UploadStatus.OPEN.value, "digest": digest}
        session.execute(update(UploadRow).where(UploadRow.id == upload.id).values(values))
    raise not_as_declared(upload.sha256 or "", digest)


def _damaged(
    upload: UploadRow, parts: Sequence[UploadPartRow], staged: StagedFile, should_stop: ShouldStop
) -> Iterator[int]:
    for part in parts:
        start = (part.number - 1) * upload.part_bytes
        if _digest(hashlib.sha256(), staged.read(start, part.size_bytes), should_stop) != part.sha256:
            yield part.number


def _digest(sha256: "hashlib._Hash", pieces: Iterable[memoryview], should_stop: ShouldStop) -> str:
    for piece in pieces:
        sha256.update(piece)
        if should_stop():
            raise CompletionStoppedError
    return sha256.hexdigest()


def _is_stored(store: BlobStore, digest: str) -> bool:
    try:
        store.size_bytes(digest)
    except LookupError:
        return False
    return True


def _reopened(database: Database, upload_id: str, numbers: Sequence[int]) -> ConflictError:
    """Let parts come again of which the disk has other bytes than had arrived."""
    with database.transaction() as session:
        of_upload = UploadPartRow.upload_id == upload_id
        session.execute(delete(UploadPartRow).where(of_upload, UploadPartRow.number.in_(numbers)))
        values = {"status": UploadStatus.OPEN.value, "digest": None}
        session.execute(update(UploadRow).where(UploadRow.id == upload_id).values(values))
    return ConflictError(
        f"{len(numbers)} parts of {upload_id} were damaged on the server's disk.",
        hint=f"GET /v1/uploads/{upload_id} shows what is there; PUT the others again.",
        code="parts_missing",
    )


def _finish(session: Session, upload_id: str) -> None:
    upload = session.get_one(UploadRow, upload_id, with_for_update=True)
    if upload.digest is None or not renew(session, upload.digest):
        raise LookupError(f"the blob of {upload_id} was collected before it was used")
    upload.status = UploadStatus.COMPLETE.value
