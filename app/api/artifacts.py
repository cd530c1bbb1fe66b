"""`/v1/artifacts`: the files that jobs produced."""

from http import HTTPStatus

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from app.api.context import Context, RequestContext
from app.api.downloads import DOWNLOADED, Proxied, blob_response
from app.api.problems import documented
from app.api.schemas.artifacts import ArtifactRead
from app.artifacts.orm import ArtifactRow
from app.jobs.specs import ArtifactId

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])


@router.get(
    "/{artifact_id}",
    operation_id="get_artifact",
    response_model=ArtifactRead,
    responses=documented(HTTPStatus.NOT_FOUND),
)
def get_artifact(artifact_id: ArtifactId, context: Context) -> ArtifactRead:
    """What the file is."""
    return ArtifactRead.of(_read(context, artifact_id))


@router.get(
    "/{artifact_id}/content",
    operation_id="download_artifact",
    response_class=Response,
    responses=DOWNLOADED | documented(HTTPStatus.NOT_FOUND, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE),
)
async def download_artifact(
    artifact_id: ArtifactId, request: Request, context: Context, proxied: Proxied = False
) -> Response:
    """The file. Takes Range; the ETag is the SHA-256."""
    row = await run_in_threadpool(_read, context, artifact_id)
    return await blob_response(
        request,
        context,
        digest=row.digest,
        size_bytes=row.size_bytes,
        media_type=row.media_type,
        filename=row.name,
        proxied=proxied,
    )


@router.delete(
    "/{artifact_id}",
    operation_id="delete_artifact",
    status_code=HTTPStatus.NO_CONTENT,
    responses=documented(HTTPStatus.NOT_FOUND),
)
def delete_artifact(artifact_id: ArtifactId, context: Context) -> None:
    """Take the file out of sight. Jobs that already have it go on."""
    with context.transaction() as session:
        context.catalog(session).delete_artifact(artifact_id)


def _read(context: RequestContext, artifact_id: str) -> ArtifactRow:
    with context.reading() as session:
        return context.catalog(session).artifact(artifact_id)
