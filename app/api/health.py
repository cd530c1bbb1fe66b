"""`/livez` and `/readyz`, without a key."""

from http import HTTPStatus
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from app.api.readiness import Readiness, ReadinessCheck

router = APIRouter(tags=["health"])


class Liveness(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


@router.get("/livez", operation_id="livez", response_model=Liveness)
async def livez() -> Liveness:
    """Touches nothing, and needs no free thread."""
    return Liveness()


@router.get(
    "/readyz",
    operation_id="readyz",
    response_model=Readiness,
    responses={HTTPStatus.SERVICE_UNAVAILABLE: {"model": Readiness}},
)
async def readyz(request: Request) -> JSONResponse:
    """Looks at the database and its schema, the store, the queue, the listener, and the workers."""
    check: ReadinessCheck = request.app.state.readiness
    found = await check.report()
    return JSONResponse(found.model_dump(), HTTPStatus.OK if found.takes_work else HTTPStatus.SERVICE_UNAVAILABLE)
