"""What the upload forms of models and datasets have in common."""

from typing import Annotated, TypeVar

from fastapi import Form, UploadFile
from pydantic import BaseModel, TypeAdapter, ValidationError

from app.api.context import RequestContext
from app.artifacts.store import Blob
from app.errors import FieldError, InvalidInputError
from app.jobs.specs import Metadata

ModelT = TypeVar("ModelT", bound=BaseModel)

NameForm = Annotated[str | None, Form(min_length=1, max_length=200, description="Default: the file's name.")]
MetadataForm = Annotated[str | None, Form(description="JSON object of your own: up to 16 pairs of strings.")]

_METADATA: TypeAdapter[dict[str, str]] = TypeAdapter(Metadata)


def parse_form(adapter: TypeAdapter[ModelT] | TypeAdapter[dict[str, str]], field: str, text: str) -> object:
    """A form field that holds JSON.

    Raises:
        InvalidInputError: it is no JSON, or not of the right shape; points into the field.
    """
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        errors = [
            FieldError("".join(f"/{part}" for part in (field, *item["loc"])), item["msg"]) for item in error.errors()
        ]
        detail = "; ".join(f"{item.pointer}: {item.detail}" for item in errors[:5])
        raise InvalidInputError(f"The form field {field!r} is not valid: {detail}.", errors=errors) from error


def parse_metadata(text: str | None) -> dict[str, str]:
    """The client's own pairs."""
    return {} if text is None else _METADATA.validate_python(parse_form(_METADATA, "metadata", text))


def store_file(context: RequestContext, file: UploadFile) -> Blob:
    """Keep the uploaded file.

    Raises:
        InvalidInputError: it is empty.
    """
    blob = context.services.store.put_stream(file.file, max_bytes=context.settings.max_body_bytes)
    if blob.size_bytes == 0:
        raise InvalidInputError("The file is empty.", errors=[FieldError("/file", "has no bytes")])
    return blob
