"""Answers that a client need not read again: an ETag, and 304 to who has it already."""

import hashlib
from http import HTTPStatus

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel


def tagged(request: Request, shown: BaseModel) -> Response:
    """`shown` as JSON with an ETag of its content, or 304 if `If-None-Match` names that."""
    content = shown.model_dump_json().encode()
    headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', "Cache-Control": "private, no-cache"}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if headers["ETag"] in known or "*" in known:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(content, headers=headers, media_type="application/json")
