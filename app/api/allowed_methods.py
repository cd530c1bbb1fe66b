"""Which methods a path takes: what `Allow` lists beside a 405 (RFC 9110). A route alone knows only of its own."""

from fastapi import FastAPI
from starlette.routing import compile_path


def allowed_methods(app: FastAPI, path: str) -> str:
    """As the header has it; empty if the description knows no such path."""
    operations = (found for template, found in app.openapi()["paths"].items() if compile_path(template)[0].match(path))
    return ", ".join(sorted({method.upper() for found in operations for method in found}))
