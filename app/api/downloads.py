"""Stored bytes over HTTP: Range, a strong ETag (the SHA-256), and conditional requests."""

import re
from http import HTTPStatus

from fastapi import Request
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

from app.api.context import RequestContext

_ONE_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_RANGES = re.compile(r"bytes=\d*-\d*(\s*,\s*\d*-\d*)*")


def blob_response(
    request: Request, context: RequestContext, *, digest: str, size_bytes: int, media_type: str, filename: str
) -> Response:
    """The bytes of a blob, or the part of them that `Range` asks for.

    Raises:
        HTTPException: 400, the range is malformed; 416, it lies outside the file.
    """
    headers = {"ETag": f'"{digest}"', "Cache-Control": "private, immutable, max-age=31536000"}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if headers["ETag"] in known or "*" in known:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    _check_range(request.headers.get("range"), size_bytes)
    path = context.services.store.path(digest)
    return FileResponse(path, media_type=media_type, filename=filename, headers=headers)


def _check_range(header: str | None, size_bytes: int) -> None:
    if header is None:
        return
    if _RANGES.fullmatch(header) is None:
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"The range {header[:100]!r} is malformed; use bytes=FIRST-LAST.")
    match = _ONE_RANGE.fullmatch(header)
    if match is None:
        return
    first, last = match.groups()
    outside = int(first) >= size_bytes if first else last in ("", "0")
    if outside or (first and last and int(last) < int(first)):
        raise HTTPException(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"The range {header} lies outside the {size_bytes} bytes.",
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )
