"""`?metadata[key]=value`: pairs in a query, as OpenAPI's deepObject has them."""

import re
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import TypeAdapter, ValidationError

from app.api.problems import explain
from app.errors import InvalidInputError
from app.jobs.specs import Metadata

_PAIR = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_METADATA: TypeAdapter[dict[str, str]] = TypeAdapter(Metadata)

METADATA_PARAMETER = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "style": "deepObject",
            "explode": True,
            "description": "`metadata[key]=value`, once or more: only jobs whose metadata have all of these pairs.",
            "schema": _METADATA.json_schema(),
        }
    ]
}
"""Its description, which FastAPI has no way to derive."""


async def read_metadata(request: Request) -> dict[str, str]:
    """The pairs in the query.

    Raises:
        InvalidInputError: a key or value cannot be metadata, or a key is given twice.
    """
    found: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        match = _PAIR.fullmatch(name)
        if match is not None:
            found[match[1]] = value if match[1] not in found else [found[match[1]], value]
    try:
        return _METADATA.validate_python(found)
    except ValidationError as error:
        errors, hint = explain([dict(item) | {"loc": ("metadata", *item["loc"])} for item in error.errors()])
        detail = "; ".join(f"{item.pointer}: {item.detail}" for item in errors[:5])
        raise InvalidInputError(f"The metadata asked for are not valid: {detail}.", errors=errors, hint=hint) from error


MetadataQuery = Annotated[dict[str, str], Depends(read_metadata)]
