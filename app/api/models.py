"""`/v1/models`: networks as safetensors (or a state dict) and an architecture as data."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response
from pydantic import Field, TypeAdapter
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.api.context import Answer, Context, Cursor, Limit, RequestContext, WaitS
from app.api.downloads import DOWNLOADED, Proxied, blob_response
from app.api.json_bodies import JsonRoute, or_json
from app.api.problems import documented
from app.api.schemas.models import ModelRead
from app.api.schemas.pages import Page, page
from app.api.uploads import (
    FromUpload,
    MetadataForm,
    NameForm,
    Plain,
    UploadRoute,
    name_of,
    parse_form,
    parse_metadata,
    store_file,
)
from app.artifacts.catalog import NewAsset
from app.artifacts.orm import AssetStatus, ModelRow
from app.artifacts.store import Blob
from app.jobs.specs import InspectModelSpec, ModelId, Name, Strict

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=UploadRoute)
json_router = APIRouter(prefix="/v1/models", tags=["models"], route_class=JsonRoute)


class LayerDescription(Strict):
    """One layer as data."""

    type: Name
    kwargs: Plain = Field(default_factory=dict)


class ArchitectureSpec(Strict):
    """A network as data, never as code. What the builder makes of it is checked in a worker."""

    builder: Name = Field(examples=["torchvision/vgg16_bn", "mlp", "layers"])
    kwargs: Plain = Field(default_factory=dict)
    replace: dict[Name, LayerDescription] = Field(default_factory=dict, max_length=100)
    input_shape: list[Annotated[int, Field(ge=1, lt=2**31)]] = Field(min_length=1, max_length=4, examples=[[3, 32, 32]])


_ARCHITECTURE: TypeAdapter[ArchitectureSpec] = TypeAdapter(ArchitectureSpec)


class ModelFromUpload(FromUpload):
    """A network whose file has come in parts."""

    spec: ArchitectureSpec


@json_router.post("", include_in_schema=False)
def create_model_from_upload(body: Annotated[ModelFromUpload, Body()], context: Context) -> JSONResponse:
    """Make a model of a complete upload."""
    described = body.spec.model_dump(mode="json", exclude_defaults=True)

    def register(session: Any) -> Answer:
        upload, blob = context.uploads(session).take(body.upload)
        return _register(context, session, NewAsset(body.name or upload.name, described, body.metadata), blob)

    return context.once(body.model_dump(mode="json"), register)


@router.post(
    "",
    operation_id="create_model",
    status_code=HTTPStatus.ACCEPTED,
    response_model=ModelRead,
    responses=documented(
        HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.GONE, HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    ),
    openapi_extra=or_json(ModelFromUpload),
)
async def create_model(
    context: Context,
    file: UploadFile,
    spec: Annotated[str, Form(description="The architecture, as JSON.")],
    name: NameForm = None,
    metadata: MetadataForm = None,
) -> JSONResponse:
    """Upload a network, or name an upload. It is `processing` until a worker has inspected it, then `ready` or
    `rejected`.
    """
    return await context.services.file_threads.run(_create, context, file, spec, name, metadata)


@router.get("", operation_id="list_models", response_model=Page[ModelRead])
def list_models(context: Context, cursor: Cursor = None, limit: Limit = 50) -> Page[ModelRead]:
    """The project's models, newest first."""
    with context.reading() as session:
        rows = context.catalog(session).list(ModelRow, before=cursor, limit=limit + 1)
        return page([ModelRead.of(row) for row in rows], [row.id for row in rows], limit)


@router.get(
    "/{model_id}", operation_id="get_model", response_model=ModelRead, responses=documented(HTTPStatus.NOT_FOUND)
)
async def get_model(model_id: ModelId, context: Context, wait: WaitS = 0) -> ModelRead:
    """One model. With `?wait=30`, answers once it has been inspected."""
    return await context.services.listener.until(
        model_id,
        lambda: _read(context, model_id),
        lambda model: model.status != AssetStatus.PROCESSING,
        min(wait, context.settings.long_poll_max_s),
    )


@router.get(
    "/{model_id}/content",
    operation_id="download_model",
    response_class=Response,
    responses=DOWNLOADED
    | documented(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE),
)
async def download_model(model_id: ModelId, request: Request, context: Context, proxied: Proxied = False) -> Response:
    """The checkpoint: safetensors with the architecture inside, for `neusemslice.load_checkpoint`."""
    row = await run_in_threadpool(_read_ready, context, model_id)
    return await blob_response(
        request,
        context,
        digest=row.digest or "",
        size_bytes=row.size_bytes,
        media_type="application/octet-stream",
        filename=f"{row.id}.safetensors",
        proxied=proxied,
    )


@router.delete(
    "/{model_id}",
    operation_id="delete_model",
    status_code=HTTPStatus.NO_CONTENT,
    responses=documented(HTTPStatus.NOT_FOUND),
)
def delete_model(model_id: ModelId, context: Context) -> None:
    """Take the model out of sight. Its inspection ends; jobs that already have it go on, and their results stay."""
    with context.transaction() as session:
        context.catalog(session).delete(ModelRow, model_id)
        context.jobs(session).cancel_inspection(model_id)


def _create(
    context: RequestContext, file: UploadFile, spec: str, name: str | None, metadata: str | None
) -> JSONResponse:
    architecture = parse_form(_ARCHITECTURE, "spec", spec)
    described = architecture.model_dump(mode="json", exclude_defaults=True)
    asset = NewAsset(name_of(name, file), described, parse_metadata(metadata))
    blob = store_file(context, file)

    def register(session: Any) -> Answer:
        return _register(context, session, asset, blob)

    return context.once([asset.name, asset.spec, asset.metadata, blob.digest], register)


def _register(context: RequestContext, session: Session, asset: NewAsset, blob: Blob) -> Answer:
    row = context.catalog(session).add(ModelRow, asset, blob)
    context.jobs(session).inspect(InspectModelSpec(kind="inspect_model", model_id=row.id))
    read = ModelRead.of(row, [(row, None)]).model_dump(mode="json")
    return Answer(HTTPStatus.ACCEPTED, read, f"/v1/models/{row.id}")


def _read(context: RequestContext, model_id: str) -> ModelRead:
    with context.reading() as session:
        model = context.catalog(session).get(ModelRow, model_id)
        return ModelRead.of(model, context.jobs(session).lineage(model_id))


def _read_ready(context: RequestContext, model_id: str) -> ModelRow:
    with context.reading() as session:
        return context.catalog(session).get_ready(ModelRow, model_id)
