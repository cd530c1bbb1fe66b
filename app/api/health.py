"""`/livez` and `/readyz`, without a key."""

from http import HTTPStatus
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from app.api.context import ServicesDep
from app.migrations import is_current

router = APIRouter(tags=["health"])


class Liveness(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    """Whether the service can take work. Without its queue it is `degraded`: jobs are kept and announced later."""

    status: Literal["ready", "degraded", "unavailable"]
    database: Literal["ok", "unreachable", "not migrated"]
    queue: Literal["ok", "unreachable"]


@router.get("/livez", operation_id="livez", response_model=Liveness)
def livez() -> Liveness:
    """Touches nothing."""
    return Liveness()


@router.get(
    "/readyz",
    operation_id="readyz",
    response_model=Readiness,
    responses={HTTPStatus.SERVICE_UNAVAILABLE: {"model": Readiness}},
)
def readyz(services: ServicesDep) -> JSONResponse:
    """Looks at the database, its schema and the queue."""
    database: Literal["ok", "unreachable", "not migrated"]
    try:
        database = "ok" if is_current(services.database) else "not migrated"
    except SQLAlchemyError:
        database = "unreachable"
    queue: Literal["ok", "unreachable"] = "ok" if services.queue.is_available() else "unreachable"
    status: Literal["ready", "degraded", "unavailable"] = "ready" if queue == "ok" else "degraded"
    if database != "ok":
        status = "unavailable"
    code = HTTPStatus.SERVICE_UNAVAILABLE if status == "unavailable" else HTTPStatus.OK
    return JSONResponse(Readiness(status=status, database=database, queue=queue).model_dump(), code)
