"""Uploads in parts as one project sees them. All of their SQL."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.artifacts.blobs import renew
from app.artifacts.orm import UploadPartRow, UploadRow, UploadStatus
from app.artifacts.storage_quota import check_storage
from app.artifacts.store import Blob
from app.artifacts.usage import holds
from app.errors import ConflictError, DigestMismatchError, FieldError, GoneError, InvalidInputError, NotFoundError
from app.ids import new_id
from app.projects.audit import record

PARTS_MAX = 10_000
_NAMED = 10


@dataclass(frozen=True)
class NewUpload:
    """What a client says about a file before it sends any of it."""

    name: str
    size_bytes: int
    sha256: str | None


@dataclass(frozen=True)
class PartPlace:
    """Where a part belongs in its file, and its SHA-256 if it has arrived."""

    number: int
    start: int
    size_bytes: int
    sha256: str | None


class Uploads:
    """One project's uploads; what belongs to others does not exist here. The caller commits."""

    def __init__(self, session: Session, project_id: str, *, ttl_s: float) -> None:
        self._session = session
        self._project_id = project_id
        self._ttl = timedelta(seconds=ttl_s)

    def start(self, new: NewUpload, *, part_bytes: int) -> UploadRow:
        """Begin an upload. One of bytes that the project has already is complete at once.

        Raises:
            QuotaError: the project may not store so much.
        """
        check_storage(self._session, self._project_id, adding=new.size_bytes, digest=new.sha256)
        upload = UploadRow(
            id=new_id("upl"),
            project_id=self._project_id,
            name=new.name,
            size_bytes=new.size_bytes,
            part_bytes=max(part_bytes, -(-new.size_bytes // PARTS_MAX)),
            sha256=new.sha256,
            expires_at=func.clock_timestamp() + self._ttl,
        )
        known = new.sha256 is not None and holds(self._session, self._project_id, new.sha256, new.size_bytes)
        if known and new.sha256 is not None and renew(self._session, new.sha256):
            upload.status, upload.digest = UploadStatus.COMPLETE.value, new.sha256
        self._session.add(upload)
        self._session.flush()
        self._session.refresh(upload)
        record(self._session, self._project_id, "upload.create", upload.id, size_bytes=new.size_bytes)
        return upload

    def get(self, upload_id: str, *, for_update: bool = False) -> UploadRow:
        """One upload.

        Raises:
            NotFoundError: this project has none with that id.
            GoneError: its time is over.
        """
        upload = self._session.get(UploadRow, upload_id, with_for_update=for_update)
        if upload is None or upload.project_id != self._project_id:
            raise NotFoundError(
                f"There is no upload {upload_id!r} in this project.", hint="Check the id and the API key."
            )
        now = self._session.execute(select(func.clock_timestamp())).scalar_one()
        if upload.expires_at <= now:
            raise GoneError(
                f"The upload {upload_id} expired at {upload.expires_at:%Y-%m-%d %H:%M:%S} UTC.",
                hint="Start a new one: POST /v1/uploads.",
                code="upload_expired",
            )
        return upload

    def parts(self, upload_id: str) -> Sequence[UploadPartRow]:
        """The parts that have arrived, in their order."""
        query = select(UploadPartRow).where(UploadPartRow.upload_id == upload_id)
        return self._session.scalars(query.order_by(UploadPartRow.number)).all()

    def place(self, upload_id: str, number: int) -> PartPlace:
        """Where a part that a client wants to send belongs.

        Raises:
            NotFoundError: this project has no such upload.
            GoneError: its time is over.
            ConflictError: it takes no parts any more.
            InvalidInputError: it has no part of that number.
        """
        upload = self._open(upload_id)
        count = part_count(upload)
        if number > count:
            detail = f"the upload has {count} parts, not {number}"
            raise InvalidInputError(
                f"There is no such part: {detail}.",
                errors=[FieldError("/path/number", detail)],
                hint=f"Number the parts of {upload.part_bytes} bytes from 1; only the last may be shorter.",
            )
        start = (number - 1) * upload.part_bytes
        row = self._session.get(UploadPartRow, (upload_id, number))
        size = min(upload.part_bytes, upload.size_bytes - start)
        return PartPlace(number, start, size, None if row is None else row.sha256)

    def forget_part(self, upload_id: str, number: int) -> None:
        """The part's bytes are about to change.

        Raises:
            NotFoundError, GoneError, ConflictError: see `place`; the upload may have changed since.
        """
        self._open(upload_id, for_update=True)
        query = delete(UploadPartRow).where(UploadPartRow.upload_id == upload_id, UploadPartRow.number == number)
        self._session.execute(query)

    def keep_part(self, upload_id: str, part: PartPlace, sha256: str) -> UploadPartRow:
        """The part has arrived; the upload lives on for a while."""
        upload = self.get(upload_id, for_update=True)
        upload.expires_at = func.clock_timestamp() + self._ttl
        upload.digest = None
        self._session.flush()
        values = {"upload_id": upload_id, "number": part.number, "size_bytes": part.size_bytes, "sha256": sha256}
        row = insert(UploadPartRow).values(values)
        renewed = {"sha256": sha256, "size_bytes": part.size_bytes, "received_at": func.clock_timestamp()}
        row = row.on_conflict_do_update(index_elements=["upload_id", "number"], set_=renewed)
        self._session.execute(row)
        return self._session.get_one(UploadPartRow, (upload_id, part.number), populate_existing=True)

    def begin_completion(self, upload_id: str) -> UploadRow:
        """No more parts. An upload that is complete stays so.

        Raises:
            NotFoundError: this project has no such upload.
            GoneError: its time is over.
            ConflictError: parts are missing.
            DigestMismatchError: these very parts have been found to be another file than was declared.
        """
        upload = self.get(upload_id, for_update=True)
        if upload.status != UploadStatus.OPEN:
            return upload
        there = {part.number for part in self.parts(upload_id)}
        missing = [number for number in range(1, part_count(upload) + 1) if number not in there]
        if missing:
            named = ", ".join(map(str, missing[:_NAMED])) + (", …" if len(missing) > _NAMED else "")
            raise ConflictError(
                f"{len(missing)} of {part_count(upload)} parts are missing: {named}.",
                hint=f"PUT them to /v1/uploads/{upload_id}/parts/{{number}}, then complete again.",
                code="parts_missing",
            )
        if upload.digest is not None:
            raise not_as_declared(upload.sha256 or "", upload.digest)
        upload.status = UploadStatus.COMPLETING.value
        self._session.flush()
        record(self._session, self._project_id, "upload.complete", upload_id)
        return upload

    def take(self, upload_id: str) -> tuple[UploadRow, Blob]:
        """A complete upload, to make something of it.

        Raises:
            NotFoundError: this project has no such upload.
            GoneError: its time is over.
            ConflictError: it is not complete.
        """
        upload = self.get(upload_id, for_update=True)
        if upload.status != UploadStatus.COMPLETE or upload.digest is None:
            raise ConflictError(
                f"The upload {upload_id} is not complete.",
                hint=f"Send all parts, then POST /v1/uploads/{upload_id}/complete.",
                code="upload_incomplete",
            )
        if not renew(self._session, upload.digest):
            raise GoneError(f"The bytes of {upload_id} are gone.", hint="Upload them again.", code="upload_expired")
        return upload, Blob(upload.digest, upload.size_bytes)

    def delete(self, upload_id: str) -> None:
        """Give an upload up; what was made of it stays."""
        self._session.delete(self.get(upload_id, for_update=True))
        record(self._session, self._project_id, "upload.delete", upload_id)

    def _open(self, upload_id: str, *, for_update: bool = False) -> UploadRow:
        upload = self.get(upload_id, for_update=for_update)
        if upload.status != UploadStatus.OPEN:
            raise ConflictError(
                f"The upload {upload_id} is {upload.status}; it takes no more parts.",
                hint=f"Use it, or start another one. See GET /v1/uploads/{upload_id}.",
                code=f"upload_{upload.status}",
            )
        return upload


def part_count(upload: UploadRow) -> int:
    """How many parts the file has."""
    return -(-upload.size_bytes // upload.part_bytes)


def not_as_declared(declared: str, found: str) -> DigestMismatchError:
    """The refusal of a file that is another one than the client said; each part is what it should be."""
    detail = f"declared was {declared}, and the parts together are {found}"
    return DigestMismatchError(
        f"The file is not the declared one: {detail}.",
        errors=[FieldError("/sha256", detail)],
        hint="Start another upload with the right sha256 (the finished parts must be sent again), or replace parts.",
    )
