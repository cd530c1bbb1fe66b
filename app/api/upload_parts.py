"""`PUT /v1/uploads/{id}/parts/{n}`: the bytes of an upload."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request
from pydantic import StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.api.context import Context, RequestContext
from app.api.problems import documented
from app.api.receiving import SILENCE_S, receive, wrong_size
from app.api.schemas.uploads import UploadPartRead
from app.artifacts.uploads import PARTS_MAX, PartPlace
from app.errors import DigestMismatchError, FieldError
from app.jobs.specs import UploadId

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
SHA256_HEADER = "X-Content-SHA256"
_RAW_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.put(
    "/{upload_id}/parts/{number}",
    operation_id="put_upload_part",
    response_model=UploadPartRead,
    responses=documented(
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.CONFLICT,
        HTTPStatus.GONE,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.INSUFFICIENT_STORAGE,
    ),
    openapi_extra=_RAW_BODY,
)
async def put_upload_part(
    upload_id: UploadId,
    number: Annotated[int, Path(ge=1, le=PARTS_MAX)],
    request: Request,
    context: Context,
    sha256: Annotated[Sha256, Header(alias=SHA256_HEADER, description="SHA-256 of the body, in lower-case hex.")],
) -> UploadPartRead:
    """Send one part, in any order and several at once. A part that is sent again takes the place of the first."""
    part = await run_in_threadpool(_place, context, upload_id, number)
    files = context.services.file_threads
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) != part.size_bytes:
        raise wrong_size(part, int(declared))
    try:
        if part.sha256 == sha256:
            await receive(request.stream(), part, None, files)
        else:
            with context.services.staging.writing(upload_id, part.start, part.size_bytes) as writer:
                await run_in_threadpool(_forget, context, upload_id, number)
                await receive(request.stream(), part, writer, files)
                if writer.digest != sha256:
                    raise _damaged(part, sha256, writer.digest)
                await files.run(writer.sync)
                kept = await run_in_threadpool(_keep, context, upload_id, part, sha256)
                context.services.completions.part_arrived(upload_id)
                return kept
    except TimeoutError as error:
        detail = f"Nothing came for {SILENCE_S:.0f} s; the part was not taken. Send it again."
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail) from error
    except ClientDisconnect as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "The connection ended before the part was whole.") from error
    return UploadPartRead(number=number, size_bytes=part.size_bytes, sha256=sha256)


def _place(context: RequestContext, upload_id: str, number: int) -> PartPlace:
    with context.transaction() as session:
        return context.uploads(session).place(upload_id, number)


def _forget(context: RequestContext, upload_id: str, number: int) -> None:
    with context.transaction() as session:
        context.uploads(session).forget_part(upload_id, number)


def _keep(context: RequestContext, upload_id: str, part: PartPlace, sha256: str) -> UploadPartRead:
    with context.transaction() as session:
        return UploadPartRead.of(context.uploads(session).keep_part(upload_id, part, sha256))


def _damaged(part: PartPlace, declared: str, found: str) -> DigestMismatchError:
    detail = f"{SHA256_HEADER} says {declared}, and the body is {found}"
    return DigestMismatchError(
        f"Part {part.number} arrived damaged: {detail}.",
        errors=[FieldError("/header/x-content-sha256", detail)],
        hint="Send it again.",
    )
