"""What the upload forms of models and datasets have in common."""

import math
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Form, Request, Response, UploadFile
from fastapi.routing import APIRoute
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from app.api.context import RequestContext
from app.api.problems import explain
from app.artifacts.store import Blob
from app.errors import FieldError, InvalidInputError
from app.jobs.specs import Metadata, Name, Strict, UploadId

T = TypeVar("T")

NameForm = Annotated[Name | None, Form(description="Default: the file's name.")]
MetadataForm = Annotated[str | None, Form(description="JSON object of your own: up to 16 pairs of strings.")]

DEPTH_MAX = 20
FIELDS_MAX = 4
FIELD_BYTES_MAX = 1024**2
TOO_LONG = "Part exceeded maximum size"
"""How Starlette's complaint about a longer text field begins."""

_METADATA: TypeAdapter[dict[str, str]] = TypeAdapter(Metadata)


class FromUpload(Strict):
    """What the JSON bodies that make something of an upload in parts have in common."""

    upload: UploadId
    name: Name | None = Field(default=None, description="Default: the upload's.")
    metadata: Metadata = Field(default_factory=dict)


def parse_form(adapter: TypeAdapter[T], field: str, text: str) -> T:
    """A form field that holds JSON.

    Raises:
        InvalidInputError: it is no JSON, or not of the right shape; points into the field.
    """
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        errors, hint = explain([dict(item) | {"loc": (field, *item["loc"])} for item in error.errors()])
        detail = "; ".join(f"{item.pointer}: {item.detail}" for item in errors[:5])
        raise InvalidInputError(
            f"The form field {field!r} is not valid: {detail}.", errors=errors, hint=hint
        ) from error


def check_plain(value: Any, depth: int = 0) -> Any:
    """A JSON value as Postgres can keep it.

    Raises:
        ValueError: a string holds a NUL, a number is not finite, or the nesting is too deep.
    """
    if isinstance(value, str) and "\x00" in value:
        raise ValueError("a string must not hold a NUL character")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number must be finite")
    if depth > DEPTH_MAX:
        raise ValueError(f"nested more than {DEPTH_MAX} deep")
    for item in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_plain(item, depth + 1)
    return value


Plain = Annotated[dict[str, Any], AfterValidator(check_plain)]
"""Any JSON object that can be stored."""


def name_of(name: str | None, file: UploadFile) -> str:
    """The given name, or the file's own as far as it can be kept."""
    return name or (file.filename or "upload").replace("\x00", "")[:200]


def parse_metadata(text: str | None) -> dict[str, str]:
    """The client's own pairs."""
    return {} if text is None else parse_form(_METADATA, "metadata", text)


def store_file(context: RequestContext, file: UploadFile) -> Blob:
    """Keep the uploaded file.

    Raises:
        InvalidInputError: it is empty.
    """
    blob = context.services.store.put_stream(file.file, max_bytes=context.settings.max_body_bytes)
    if blob.size_bytes == 0:
        raise InvalidInputError("The file is empty.", errors=[FieldError("/file", "has no bytes")])
    return blob


class UploadRequest(Request):
    """Takes one file and a few fields; a form with thousands of parts would fill the memory."""

    def form(self, **_: Any) -> Any:
        """See Request.form."""
        return super().form(max_files=1, max_fields=FIELDS_MAX, max_part_size=FIELD_BYTES_MAX)


class UploadRoute(APIRoute):
    """A route whose forms are bounded."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            try:
                return await handle(UploadRequest(request.scope, request.receive))
            except HTTPException as error:
                if not error.detail.startswith(TOO_LONG):
                    raise
                detail = f"a text field of the form has more than {FIELD_BYTES_MAX} bytes"
                raise InvalidInputError(
                    f"The spec is too long: {detail}, and no other text field needs so many.",
                    errors=[FieldError("/spec", detail)],
                    hint="Write it without whitespace and without what is default anyway, or describe fewer nodes.",
                ) from error

        return bounded
