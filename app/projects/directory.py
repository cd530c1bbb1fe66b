"""Projects by name, with the limits that an operator sets."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.errors import ConflictError, NotFoundError
from app.ids import new_id
from app.projects.audit import record
from app.projects.orm import ApiKeyRow, ProjectRow


@dataclass(frozen=True)
class Limits:
    """How much a project may have; None is without limit."""

    max_running_jobs: int | None = None
    """Jobs that run at once."""
    max_queued_jobs: int | None = None
    """Jobs that wait for a worker."""
    max_stored_bytes: int | None = None
    """Bytes of models, datasets and artifacts."""
    requests_per_minute: int | None = None
    """HTTP requests, of all its keys together; as many may come at once."""

    @classmethod
    def of(cls, row: ProjectRow) -> "Limits":
        """From its row."""
        return cls(**{name: getattr(row, name) for name in cls.__dataclass_fields__})


def ensure_project(session: Session, name: str) -> str:
    """The id of the project called `name`, made if there is none."""
    values = {"id": new_id("prj"), "name": name}
    made = insert(ProjectRow).values(values).on_conflict_do_nothing().returning(ProjectRow.id)
    project_id = session.execute(made).scalar_one_or_none()
    if project_id is None:
        query = select(ProjectRow.id).where(ProjectRow.name == name, ProjectRow.deleted_at.is_(None))
        return session.execute(query).scalar_one()
    record(session, project_id, "project.create", project_id, name=name)
    return project_id


def create_project(session: Session, name: str) -> ProjectRow:
    """A new project.

    Raises:
        ConflictError: there is one with that name.
    """
    query = select(ProjectRow.id).where(ProjectRow.name == name, ProjectRow.deleted_at.is_(None))
    if session.execute(query).scalar_one_or_none() is not None:
        raise ConflictError(f"There is a project {name!r} already.", hint="`neusemslice projects list` shows them.")
    return session.get_one(ProjectRow, ensure_project(session, name))


def find_project(session: Session, name: str) -> ProjectRow:
    """The project called `name`.

    Raises:
        NotFoundError: there is none.
    """
    query = select(ProjectRow).where(ProjectRow.name == name, ProjectRow.deleted_at.is_(None))
    row = session.scalars(query).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no project {name!r}.", hint="`neusemslice projects list` shows them.")
    return row


def list_projects(session: Session) -> Sequence[ProjectRow]:
    """Every project, by name."""
    query = select(ProjectRow).where(ProjectRow.deleted_at.is_(None))
    return session.scalars(query.order_by(ProjectRow.name)).all()


def set_limits(session: Session, project: ProjectRow, changes: Mapping[str, int | None]) -> Limits:
    """Change the limits that `changes` names, as fields of Limits; requests notice within the life of a cached key."""
    before = asdict(Limits.of(project))
    changed = {name: value for name, value in changes.items() if before[name] != value}
    for name, value in changed.items():
        setattr(project, name, value)
    if changed:
        was = {name: before[name] for name in changed}
        record(session, project.id, "project.set_limits", project.id, before=was, after=changed)
    return Limits.of(project)


def close_project(session: Session, project: ProjectRow) -> None:
    """Take the project and its keys out of use; its name becomes free. What it owns is its owner's to remove."""
    now = session.execute(select(func.clock_timestamp())).scalar_one()
    keys = update(ApiKeyRow).where(ApiKeyRow.project_id == project.id, ApiKeyRow.revoked_at.is_(None))
    for key_id in session.scalars(keys.values(revoked_at=now).returning(ApiKeyRow.id)):
        record(session, project.id, "key.revoke", key_id)
    project.deleted_at = now
    record(session, project.id, "project.delete", project.id, name=project.name)
