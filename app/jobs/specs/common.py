"""What the specs of all kinds are made of."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from neusemslice.errors import ConfigError

NO_NUL = r"^[^\x00]*$"
"""Postgres keeps no NUL in text."""

ModelId = Annotated[str, StringConstraints(pattern=r"^mdl_[0-9a-z]{26}$")]
DatasetId = Annotated[str, StringConstraints(pattern=r"^ds_[0-9a-z]{26}$")]
JobId = Annotated[str, StringConstraints(pattern=r"^job_[0-9a-z]{26}$")]
UploadId = Annotated[str, StringConstraints(pattern=r"^upl_[0-9a-z]{26}$")]
ArtifactId = Annotated[str, StringConstraints(pattern=r"^art_[0-9a-z]{26}$")]
Cut = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Priority = Literal["low", "normal", "high"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=NO_NUL)]
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_NUL)],
        Annotated[str, StringConstraints(max_length=512, pattern=NO_NUL)],
    ],
    Field(max_length=16, description="Up to 16 pairs of your own; keys up to 64, values up to 512 characters."),
]
MAX_RUNTIME_S = 366 * 24 * 3600.0


def as_text(moment: object) -> object:
    """A time as it is written in JSON and queries, never a number of seconds."""
    if isinstance(moment, datetime) or (isinstance(moment, str) and re.match(r"\d{4}-", moment)):
        return moment
    raise ValueError("a time is written as in RFC 3339, such as 2030-01-31T06:00:00Z")


def in_utc(moment: datetime) -> datetime:
    """The same moment; none so far off that UTC or Postgres could not express it."""
    if not 1970 < moment.year < 9000:
        raise ValueError("the year must lie between 1971 and 8999")
    return moment.astimezone(UTC)


Moment = Annotated[AwareDatetime, BeforeValidator(as_text), AfterValidator(in_utc)]


class Strict(BaseModel):
    """Refuses unknown fields: a misspelt parameter must not be ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def default_of(model: Strict, field: str) -> Any:
    """What the field has when it is left out. A client may send it along where the field has no effect."""
    return type(model).model_fields[field].default


@contextmanager
def refusing(model: Strict) -> Iterator[None]:
    """Turn a ConfigError into pydantic's own error, at its field and with its hint."""
    try:
        yield
    except ConfigError as error:
        refusal = PydanticCustomError(error.code, "{message}", {"message": error.message, "hint": error.hint})
        place = (error.field,) if error.field in type(model).model_fields else ()
        line = InitErrorDetails(type=refusal, loc=place, input=getattr(model, error.field, None))
        raise ValidationError.from_exception_data(type(model).__name__, [line]) from error


class Common(Strict):
    """What clients may say of every job. A field `NAME_id`, or an item of `NAME_ids`, names something stored."""

    model_id: ModelId
    seed: int = Field(default=0, ge=0, lt=2**32)
    metadata: Metadata = Field(default_factory=dict)
    priority: Priority = Field(
        default="normal",
        description="More urgent jobs start first, whosesoever they are; among equals, projects take turns.",
    )
    max_runtime_s: float | None = Field(
        default=None,
        gt=0,
        le=MAX_RUNTIME_S,
        description="End an attempt that runs longer, with the code `max_runtime_exceeded`. The operator's limit holds "
        "besides.",
    )
    deadline: Moment | None = Field(
        default=None,
        description="When the job is of no use any more: one that still waits then fails, one that runs is stopped, "
        "both with the code `deadline_passed`.",
    )
    batch_size: int = Field(default=256, ge=1, le=8192)
    limit_per_category: int | None = Field(
        default=None, ge=4, le=10**9, description="Analyse at most this many samples of each category. Default: all."
    )

    def references(self) -> dict[str, str]:
        """The ids of all stored models, datasets and slices that the job works on, by JSON pointer."""
        return references(self.model_dump(mode="json", exclude={"metadata"}))


class Producing(Common):
    """A job that leaves exactly one output with the role `model`, made from the model it was given."""

    produced: ClassVar[str]
    """What has been done to the model; ends the default name of what it became."""

    name: Name | None = Field(default=None, description="Name of the produced model.")


def file_of(pointer: str) -> str:
    """What the job's process calls the file: `/model_id` is `model`, `/dataset_ids/0` is `dataset_0`."""
    return "_".join(re.sub(r"_ids?$", "", part) for part in pointer.split("/")[1:])


def references(spec: Mapping[str, Any]) -> dict[str, str]:
    """Those of a stored spec, of any version of this code."""
    return dict(_references(spec, ""))


def _references(value: Any, pointer: str, named: bool = False) -> Iterator[tuple[str, str]]:
    match value:
        case Mapping():
            for field, item in value.items():
                yield from _references(item, f"{pointer}/{field}", field.endswith(("_id", "_ids")))
        case list():
            for place, item in enumerate(value):
                yield from _references(item, f"{pointer}/{place}", named)
        case str() if named:
            yield pointer, value
