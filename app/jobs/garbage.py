"""Removes what nobody needs any more (docs/decisions/0018). Any number of collectors may run at once.

A blob goes in one transaction: its row is deleted if nothing needs it, which locks it; then the bytes; then the commit.
Whoever puts the same bytes meanwhile announces them first, waits for that lock, and then finds that they are gone and
stores them again. Whoever announced them before has made the row young, and the collector leaves it alone.
"""

from dataclasses import dataclass, field
from datetime import timedelta

import structlog
from sqlalchemy import delete, func, or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert

from app.artifacts.orm import BlobRow, UploadRow
from app.artifacts.staging import Staging
from app.artifacts.store import BlobStore
from app.artifacts.stores import make_store
from app.db import Database
from app.errors import ConflictError
from app.jobs.orm import AnalysisRow
from app.jobs.retention import named_by_jobs, no_row_needs, unneeded
from app.settings import Settings

log = structlog.get_logger(__name__)

_BATCH = 1000


@dataclass
class Collected:
    """What was removed, or would be."""

    blobs: int = 0
    bytes: int = 0
    uploads: int = 0
    analyses: int = 0
    digests: list[str] = field(default_factory=list)


class Collector:
    """Garbage collection of one deployment."""

    def __init__(self, settings: Settings, database: Database, store: BlobStore, staging: Staging) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._staging = staging
        self._grace = timedelta(seconds=settings.gc_grace_s)

    def collect(self, *, dry_run: bool = False) -> Collected:
        """Remove expired uploads, unused analyses, and every blob that then nothing needs.

        A dry run only tells what would be removed now; what an expired upload or an analysis alone needs goes in the
        round after it.
        """
        collected = Collected()
        self._drop_uploads(collected, dry_run=dry_run)
        self._drop_analyses(collected, dry_run=dry_run)
        if not dry_run:
            self._register_unknown()
        with self._database.transaction() as session:
            named = named_by_jobs(session)
            candidates = session.execute(unneeded(named, self._grace)).all()
        for digest, size_bytes in candidates:
            if dry_run or self._drop_blob(digest, named):
                collected.blobs += 1
                collected.bytes += size_bytes
                collected.digests.append(digest)
        if not dry_run:
            log.info(
                "garbage.collected",
                blobs=collected.blobs,
                bytes=collected.bytes,
                uploads=collected.uploads,
                analyses=collected.analyses,
            )
        return collected

    def _drop_blob(self, digest: str, named: frozenset[str]) -> bool:
        """Whether it was still unneeded, and is gone."""
        with self._database.transaction() as session:
            silent = BlobRow.touched_at < func.clock_timestamp() - self._grace
            query = delete(BlobRow).where(BlobRow.digest == digest, silent, *no_row_needs(named, self._grace))
            if session.execute(query.returning(BlobRow.digest)).scalar_one_or_none() is None:
                return False
            self._store.remove(digest)
        return True

    def _register_unknown(self) -> None:
        """Blobs without a row, of an older version or of a crash, get one; their grace period begins now."""
        batch: list[dict[str, object]] = []
        for blob in self._store.blobs():
            batch.append({"digest": blob.digest, "size_bytes": blob.size_bytes})
            if len(batch) == _BATCH:
                self._register(batch)
                batch = []
        self._register(batch)

    def _register(self, batch: list[dict[str, object]]) -> None:
        if batch:
            with self._database.transaction() as session:
                session.execute(insert(BlobRow).on_conflict_do_nothing(), batch)

    def _drop_uploads(self, collected: Collected, *, dry_run: bool) -> None:
        """Those whose time is over, and bytes of those that were given up."""
        with self._database.transaction() as session:
            over = UploadRow.expires_at < func.clock_timestamp()
            expired = set(session.scalars(select(UploadRow.id).where(over)))
            staged = self._staging.uploads()
            known = set(session.scalars(select(UploadRow.id).where(UploadRow.id.in_(staged))))
        for upload_id in expired | (set(staged) - known):
            if dry_run or self._drop_upload(upload_id):
                collected.uploads += 1

    def _drop_upload(self, upload_id: str) -> bool:
        try:
            with self._staging.whole(upload_id), self._database.transaction() as session:
                over = UploadRow.expires_at < func.clock_timestamp()
                session.execute(delete(UploadRow).where(UploadRow.id == upload_id, over))
                session.flush()
                gone = session.get(UploadRow, upload_id) is None
        except ConflictError:  # somebody is sending or verifying it; there will be another round
            return False
        if gone:
            self._staging.remove(upload_id)
        return gone

    def _drop_analyses(self, collected: Collected, *, dry_run: bool) -> None:
        """Those that no job has used for long, and beyond the limit those used longest ago."""
        now, settings = func.clock_timestamp(), self._settings
        newer = func.sum(AnalysisRow.size_bytes).over(order_by=[AnalysisRow.used_at.desc(), AnalysisRow.key])
        ranked = select(AnalysisRow.project_id, AnalysisRow.key, AnalysisRow.used_at, newer.label("bytes")).subquery()
        old = ranked.c.used_at < now - timedelta(seconds=settings.analysis_kept_s)
        found = select(ranked.c.project_id, ranked.c.key).where(or_(old, ranked.c.bytes > settings.analysis_max_bytes))
        silent = AnalysisRow.used_at < now - self._grace  # looked at again under the row's lock
        unused = silent, tuple_(AnalysisRow.project_id, AnalysisRow.key).in_(found)
        with self._database.transaction() as session:
            if dry_run:
                collected.analyses = session.scalars(select(func.count()).where(*unused)).one()
            else:
                rows = session.execute(delete(AnalysisRow).where(*unused).returning(AnalysisRow.key))
                collected.analyses = len(rows.all())


def collect_garbage(settings: Settings, database: Database, *, dry_run: bool = False) -> Collected:
    """One round on this deployment; see Collector."""
    store, staging = make_store(settings, database), Staging(settings.upload_dir)
    return Collector(settings, database, store, staging).collect(dry_run=dry_run)
