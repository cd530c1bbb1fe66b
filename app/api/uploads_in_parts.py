"""`/v1/uploads`: files of any size, in parts that can be sent side by side and sent again."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from app.api.context import Answer, Context, RequestContext
from app.api.problems import documented
from app.api.schemas.uploads import UploadRead
from app.api.upload_parts import Sha256
from app.artifacts.orm import UploadRow, UploadStatus
from app.artifacts.uploads import NewUpload
from app.errors import TooLargeError
from app.jobs.specs import Name, Strict, UploadId

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

COMPLETE_WAIT_S = 20.0


class UploadCreate(Strict):
    """A file that is about to come."""

    size_bytes: int = Field(ge=1, lt=2**63)
    sha256: Sha256 | None = Field(
        default=None, description="Of the whole file. If the project has the file already, nothing needs to be sent."
    )
    name: Name = "upload"


@router.post(
    "",
    operation_id="create_upload",
    status_code=HTTPStatus.CREATED,
    response_model=UploadRead,
    responses=documented(HTTPStatus.CONFLICT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
)
def create_upload(body: Annotated[UploadCreate, Body()], context: Context) -> JSONResponse:
    """Begin an upload. Cut the file into pieces of `part_bytes`, and PUT each under its number, from 1."""
    settings = context.settings
    if body.size_bytes > settings.max_upload_bytes:
        raise TooLargeError(
            f"The file has {body.size_bytes} bytes; at most {settings.max_upload_bytes} are taken.",
            hint="Upload less, or ask the operator for a higher limit (NEUSEMSLICE_MAX_UPLOAD_BYTES).",
        )
    new = NewUpload(body.name, body.size_bytes, body.sha256)
    part_bytes = min(settings.upload_part_bytes, settings.max_body_bytes)

    def start(session: Any) -> Answer:
        upload = context.uploads(session).start(new, part_bytes=part_bytes)
        return Answer(HTTPStatus.CREATED, UploadRead.of(upload, ()).model_dump(mode="json"), f"/v1/uploads/{upload.id}")

    return context.once(body.model_dump(mode="json"), start)


@router.get(
    "/{upload_id}",
    operation_id="get_upload",
    response_model=UploadRead,
    responses=documented(HTTPStatus.NOT_FOUND, HTTPStatus.GONE),
)
def get_upload(upload_id: UploadId, context: Context) -> UploadRead:
    """What has arrived: after an interruption, send the other parts."""
    return _read(context, upload_id)


@router.post(
    "/{upload_id}/complete",
    operation_id="complete_upload",
    response_model=UploadRead,
    responses={HTTPStatus.ACCEPTED: {"description": "Still being verified: ask again.", "model": UploadRead}}
    | documented(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.GONE),
)
async def complete_upload(upload_id: UploadId, context: Context) -> JSONResponse:
    """Verify and store the file. 200: a model or dataset may be made of it; 202: not yet, POST this again. Repeating it
    does no harm.
    """
    upload = await run_in_threadpool(_begin_completion, context, upload_id)
    if upload.status == UploadStatus.COMPLETING:
        await context.services.completions.wait(upload_id, COMPLETE_WAIT_S)
    read = await run_in_threadpool(_read, context, upload_id)
    if read.status == UploadStatus.COMPLETE:
        return JSONResponse(read.model_dump(mode="json"))
    headers = {"Location": f"/v1/uploads/{upload_id}", "Retry-After": "1"}
    return JSONResponse(read.model_dump(mode="json"), HTTPStatus.ACCEPTED, headers)


@router.delete(
    "/{upload_id}",
    operation_id="delete_upload",
    status_code=HTTPStatus.NO_CONTENT,
    responses=documented(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.GONE),
)
def delete_upload(upload_id: UploadId, context: Context) -> None:
    """Give the upload up. Models and datasets that were made of it stay."""
    with context.transaction() as session:
        context.uploads(session).get(upload_id)
    with context.services.staging.whole(upload_id), context.transaction() as session:
        context.uploads(session).delete(upload_id)
    context.services.staging.remove(upload_id)


def _begin_completion(context: RequestContext, upload_id: str) -> UploadRow:
    with context.transaction() as session:
        return context.uploads(session).begin_completion(upload_id)


def _read(context: RequestContext, upload_id: str) -> UploadRead:
    with context.transaction() as session:
        uploads = context.uploads(session)
        return UploadRead.of(uploads.get(upload_id), uploads.parts(upload_id))
