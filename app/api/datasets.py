"""`/v1/datasets`: .npz, safetensors, or an archive of image folders."""

from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Form, UploadFile
from fastapi.responses import JSONResponse
from pydantic import Field, TypeAdapter
from sqlalchemy.orm import Session

from app.api.context import Answer, Context, Cursor, Limit, RequestContext, WaitS
from app.api.json_bodies import JsonRoute, or_json
from app.api.problems import documented
from app.api.schemas.datasets import DatasetRead
from app.api.schemas.pages import Page, page
from app.api.uploads import (
    FromUpload,
    MetadataForm,
    NameForm,
    UploadRoute,
    name_of,
    parse_form,
    parse_metadata,
    store_file,
)
from app.artifacts.catalog import NewAsset
from app.artifacts.orm import AssetStatus, DatasetRow
from app.artifacts.store import Blob
from app.jobs.specs import DatasetId, InspectDatasetSpec, Strict

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=UploadRoute)
json_router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=JsonRoute)

Side = Annotated[int, Field(ge=1, le=10_000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PreprocessSpec(Strict):
    """From stored to network values: resize when importing, then (x * scale - mean) / std."""

    resize: tuple[Side, Side] | None = None
    scale: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    mean: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(default=None, min_length=1, max_length=4096)
    std: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = Field(
        default=None, min_length=1, max_length=4096
    )


class DatasetSpec(Strict):
    """How to read the file."""

    format: Literal["auto", "npz", "imagefolder", "safetensors"] = "auto"
    preprocess: PreprocessSpec = PreprocessSpec()


_SPEC: TypeAdapter[DatasetSpec] = TypeAdapter(DatasetSpec)


class DatasetFromUpload(FromUpload):
    """A dataset whose file has come in parts."""

    spec: DatasetSpec = DatasetSpec()


@json_router.post("", include_in_schema=False)
def create_dataset_from_upload(body: Annotated[DatasetFromUpload, Body()], context: Context) -> JSONResponse:
    """Make a dataset of a complete upload."""
    described = body.spec.model_dump(mode="json", exclude_none=True)

    def register(session: Any) -> Answer:
        upload, blob = context.uploads(session).take(body.upload)
        return _register(context, session, NewAsset(body.name or upload.name, described, body.metadata), blob)

    return context.once(body.model_dump(mode="json"), register)


@router.post(
    "",
    operation_id="create_dataset",
    status_code=HTTPStatus.ACCEPTED,
    response_model=DatasetRead,
    responses=documented(
        HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.GONE, HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    ),
    openapi_extra=or_json(DatasetFromUpload),
)
async def create_dataset(
    context: Context,
    file: UploadFile,
    spec: Annotated[str, Form(description="How to read the file, as JSON: format and preprocess.")] = "{}",
    name: NameForm = None,
    metadata: MetadataForm = None,
) -> JSONResponse:
    """Upload a dataset, or name an upload. It is `processing` until a worker has inspected it, then `ready` or
    `rejected`.
    """
    return await context.services.file_threads.run(_create, context, file, spec, name, metadata)


@router.get("", operation_id="list_datasets", response_model=Page[DatasetRead])
def list_datasets(context: Context, cursor: Cursor = None, limit: Limit = 50) -> Page[DatasetRead]:
    """The project's datasets, newest first."""
    with context.reading() as session:
        rows = context.catalog(session).list(DatasetRow, before=cursor, limit=limit + 1)
        return page([DatasetRead.of(row) for row in rows], [row.id for row in rows], limit)


@router.get(
    "/{dataset_id}",
    operation_id="get_dataset",
    response_model=DatasetRead,
    responses=documented(HTTPStatus.NOT_FOUND),
)
async def get_dataset(dataset_id: DatasetId, context: Context, wait: WaitS = 0) -> DatasetRead:
    """One dataset. With `?wait=30`, answers once it has been inspected."""
    return await context.services.listener.until(
        dataset_id,
        lambda: _read(context, dataset_id),
        lambda dataset: dataset.status != AssetStatus.PROCESSING,
        min(wait, context.settings.long_poll_max_s),
    )


@router.delete(
    "/{dataset_id}",
    operation_id="delete_dataset",
    status_code=HTTPStatus.NO_CONTENT,
    responses=documented(HTTPStatus.NOT_FOUND),
)
def delete_dataset(dataset_id: DatasetId, context: Context) -> None:
    """Take the dataset out of sight. Its inspection ends; jobs that already have it go on, and their results stay."""
    with context.transaction() as session:
        context.catalog(session).delete(DatasetRow, dataset_id)
        context.jobs(session).cancel_inspection(dataset_id)


def _create(
    context: RequestContext, file: UploadFile, spec: str, name: str | None, metadata: str | None
) -> JSONResponse:
    reading = parse_form(_SPEC, "spec", spec)
    described = reading.model_dump(mode="json", exclude_none=True)
    asset = NewAsset(name_of(name, file), described, parse_metadata(metadata))
    blob = store_file(context, file)

    def register(session: Any) -> Answer:
        return _register(context, session, asset, blob)

    return context.once([asset.name, asset.spec, asset.metadata, blob.digest], register)


def _register(context: RequestContext, session: Session, asset: NewAsset, blob: Blob) -> Answer:
    row = context.catalog(session).add(DatasetRow, asset, blob)
    context.jobs(session).inspect(InspectDatasetSpec(kind="inspect_dataset", dataset_id=row.id))
    return Answer(HTTPStatus.ACCEPTED, DatasetRead.of(row).model_dump(mode="json"), f"/v1/datasets/{row.id}")


def _read(context: RequestContext, dataset_id: str) -> DatasetRead:
    with context.reading() as session:
        return DatasetRead.of(context.catalog(session).get(DatasetRow, dataset_id))
