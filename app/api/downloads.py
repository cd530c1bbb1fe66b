"""Stored bytes over HTTP: Range, a strong ETag (the SHA-256), and conditional requests.

They are sent to be saved, never shown: a page among them must not run on the API's own origin.
"""

import re
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

from app.api.context import RequestContext

_NEVER_SHOWN = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}
_ONE_RANGE = re.compile(r"bytes=(\d{1,18}-\d{0,18}|-\d{1,18})")


Proxied = Annotated[
    bool, Query(description="Where an object store has the file: send it through here, not by a redirect to the store.")
]


_BYTES: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
DOWNLOADED: dict[int | str, dict[str, Any]] = {
    HTTPStatus.OK.value: {"description": "The file.", "content": _BYTES},
    HTTPStatus.PARTIAL_CONTENT.value: {"description": "The part that Range asked for.", "content": _BYTES},
    HTTPStatus.TEMPORARY_REDIRECT.value: {"description": "The object store has it; the ETag is the SHA-256."},
    HTTPStatus.NOT_MODIFIED.value: {"description": "You have it already."},
}
"""What downloads answer."""


class BlobFile(FileResponse):
    """A file in pieces that are worth a thread's change each."""

    chunk_size = 1024 * 1024


async def blob_response(
    request: Request,
    context: RequestContext,
    *,
    digest: str,
    size_bytes: int,
    media_type: str,
    filename: str,
    proxied: bool,
) -> Response:
    """The bytes of a blob, or the part of them that `Range` asks for; or where an object store has them.

    Raises:
        HTTPException: 416, the range lies outside the file.
    """
    headers = {"ETag": f'"{digest}"', "Cache-Control": "private, immutable, max-age=31536000", **_NEVER_SHOWN}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if headers["ETag"] in known or "*" in known:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    store, threads = context.services.store, context.services.file_threads
    ask = partial(store.download_url, digest, filename=filename, media_type=media_type)
    url = None if proxied else await threads.run(ask)
    if url is not None:
        headers |= {"Location": url, "Cache-Control": "no-store"}
        return Response(status_code=HTTPStatus.TEMPORARY_REDIRECT, headers=headers)
    _settle_range(request, size_bytes)
    path = await threads.run(store.path, digest)
    return BlobFile(
        path, media_type=media_type, filename=filename, headers=headers, content_disposition_type="attachment"
    )


def _settle_range(request: Request, size_bytes: int) -> None:
    """Refuse a range outside the file; drop what is not one range of bytes, as HTTP allows (RFC 9110, 14.2)."""
    header = request.headers.get("range")
    match = _ONE_RANGE.fullmatch(header or "")
    if match is None:
        request.scope["headers"] = [item for item in request.scope["headers"] if item[0] != b"range"]
        return
    first, last = match.group(1).split("-")
    outside = int(first) >= size_bytes if first else int(last) == 0
    if outside or (first and last and int(last) < int(first)):
        raise HTTPException(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"The range {header} lies outside the {size_bytes} bytes.",
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )
