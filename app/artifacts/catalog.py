"""Models, datasets and artifacts as one project sees them. All of their SQL."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from sqlalchemy import func, literal, select, tuple_
from sqlalchemy.orm import Session

from app.artifacts.orm import ArtifactRow, AssetColumns, AssetStatus, DatasetRow, ModelRow
from app.artifacts.storage_quota import check_storage
from app.artifacts.store import Blob
from app.db import JsonObject
from app.errors import ConflictError, NotFoundError, NotReadyError
from app.ids import new_id
from app.projects.audit import record

AssetT = TypeVar("AssetT", ModelRow, DatasetRow)

_NOUNS: dict[type, str] = {ModelRow: "model", DatasetRow: "dataset", ArtifactRow: "artifact"}
_PREFIXES: dict[type, str] = {ModelRow: "mdl", DatasetRow: "ds"}


@dataclass(frozen=True)
class NewAsset:
    """What a client says about a model or dataset that it uploads."""

    name: str
    spec: JsonObject
    metadata: JsonObject


class Catalog:
    """One project's models, datasets and artifacts; what belongs to others does not exist here."""

    def __init__(self, session: Session, project_id: str) -> None:
        self._session = session
        self._project_id = project_id

    def add(self, kind: type[AssetT], asset: NewAsset, source: Blob) -> AssetT:
        """Register an upload, still to be inspected.

        Raises:
            QuotaError: the project may not store so much.
        """
        check_storage(self._session, self._project_id, adding=source.size_bytes, digest=source.digest)
        row = kind(
            id=new_id(_PREFIXES[kind]),
            project_id=self._project_id,
            name=asset.name,
            spec=asset.spec,
            metadata_=asset.metadata,
            source_digest=source.digest,
            size_bytes=source.size_bytes,
        )
        self._session.add(row)
        self._session.flush()
        record(self._session, self._project_id, f"{_NOUNS[kind]}.create", row.id, name=row.name, sha256=source.digest)
        return row

    def get(self, kind: type[AssetT], asset_id: str) -> AssetT:
        """One model or dataset.

        Raises:
            NotFoundError: this project has none with that id.
        """
        row = self._session.get(kind, asset_id)
        if row is None or row.project_id != self._project_id or row.deleted_at is not None:
            raise _not_found(kind, asset_id)
        return row

    def get_ready(self, kind: type[AssetT], asset_id: str) -> AssetT:
        """One model or dataset that jobs may use.

        Raises:
            NotFoundError: this project has none with that id.
            NotReadyError: its inspection has not finished.
            ConflictError: it was rejected.
        """
        row = self.get(kind, asset_id)
        noun = _NOUNS[kind]
        if row.status == AssetStatus.PROCESSING:
            raise NotReadyError(
                f"The {noun} {asset_id} is still being inspected.",
                hint=f"Wait for it: GET /v1/{noun}s/{asset_id}?wait=30, then try again.",
            )
        if row.status == AssetStatus.REJECTED:
            raise ConflictError(
                f"The {noun} {asset_id} was rejected: {(row.error or {}).get('detail', '')}",
                hint=f"Upload a corrected {noun}.",
                code=f"{noun}_rejected",
            )
        return row

    def list(self, kind: type[AssetT], *, before: str | None, limit: int) -> Sequence[AssetT]:
        """At most `limit` of them, newest first, older than the one called `before`."""
        query = select(kind).where(kind.project_id == self._project_id, kind.deleted_at.is_(None))
        if before is not None:
            query = query.where(kind.id < before)
        return self._session.scalars(query.order_by(kind.id.desc()).limit(limit)).all()

    def delete(self, kind: type[AssetT], asset_id: str) -> None:
        """Take a model or dataset out of sight; results computed from it stay."""
        self.get(kind, asset_id).deleted_at = self._now()
        record(self._session, self._project_id, f"{_NOUNS[kind]}.delete", asset_id)

    def delete_artifact(self, artifact_id: str) -> None:
        """Take an artifact out of sight; jobs that have it already go on."""
        self.artifact(artifact_id).deleted_at = self._now()
        record(self._session, self._project_id, "artifact.delete", artifact_id)

    def line_of(self, model_id: str) -> Sequence[ModelRow]:
        """A model, the one it was made from, and so on up to the upload; also those that were deleted."""
        own = select(ModelRow.id, ModelRow.parent_model_id, literal(0).label("distance"))
        line = own.where(ModelRow.id == model_id, ModelRow.project_id == self._project_id).cte(recursive=True)
        parents = select(ModelRow.id, ModelRow.parent_model_id, line.c.distance + 1)
        line = line.union_all(parents.join(line, ModelRow.id == line.c.parent_model_id))
        # Two steps, as a plan does not know a line's length, and would read all models to join it.
        ids = self._session.scalars(select(line.c.id).order_by(line.c.distance)).all()
        models = {row.id: row for row in self._session.scalars(select(ModelRow).where(ModelRow.id.in_(ids)))}
        return [models[model_id] for model_id in ids]

    def artifact(self, artifact_id: str) -> ArtifactRow:
        """One artifact.

        Raises:
            NotFoundError: this project has none with that id.
        """
        row = self._session.get(ArtifactRow, artifact_id)
        if row is None or row.project_id != self._project_id or row.deleted_at is not None:
            raise _not_found(ArtifactRow, artifact_id)
        return row

    def artifacts_of(self, attempts: Collection[tuple[str, int]]) -> Sequence[ArtifactRow]:
        """The artifacts of some attempts (job, fence), oldest first."""
        of_attempts = tuple_(ArtifactRow.job_id, ArtifactRow.fence).in_(attempts)
        mine = ArtifactRow.project_id == self._project_id, ArtifactRow.deleted_at.is_(None)
        query = select(ArtifactRow).where(*mine, of_attempts)
        return self._session.scalars(query.order_by(ArtifactRow.id)).all()

    def _now(self) -> datetime:
        now: datetime = self._session.execute(select(func.clock_timestamp())).scalar_one()
        return now


def accept(row: AssetColumns, *, digest: str, size_bytes: int, facts: JsonObject) -> None:
    """The inspection found the asset good: keep where its canonical form is and what was found."""
    row.status, row.digest, row.size_bytes, row.facts = AssetStatus.READY.value, digest, size_bytes, facts


def reject(row: AssetColumns, error: JsonObject) -> None:
    """The inspection found the asset unusable."""
    row.status, row.error = AssetStatus.REJECTED.value, error


def _not_found(kind: type, object_id: str) -> NotFoundError:
    noun = _NOUNS[kind]
    return NotFoundError(f"There is no {noun} {object_id!r} in this project.", hint="Check the id and the API key.")
