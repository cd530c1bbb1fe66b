"""Paths that take a form or JSON: the media type of the body decides which endpoint answers.

The description of the API has one operation for each path and method, so that of the form names the JSON body too.
"""

from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import Scope

JSON = "application/json"


class JsonRoute(APIRoute):
    """A route for JSON bodies alone; every other request goes on to the route of the form."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See Route."""
        media_type = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        return super().matches(scope) if media_type == JSON else (Match.NONE, {})


def or_json(body: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra=` of a form's operation that takes `body` as JSON instead."""
    schema = body.model_json_schema()
    return {"requestBody": {"content": {JSON: {"schema": _inlined(schema, schema.pop("$defs", {}))}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """References by what they stand for: a document's own definitions are not found from within another's."""
    match schema:
        case {"$ref": str(reference)}:
            return _inlined(definitions[reference.rpartition("/")[2]], definitions)
        case dict():
            return {key: _inlined(value, definitions) for key, value in schema.items()}
        case list():
            return [_inlined(item, definitions) for item in schema]
    return schema
