"""A JSON object, as rows, messages and problems carry it."""

from typing import Any

JsonObject = dict[str, Any]
