"""How many workers share the analysis of one job, and what each of them is told."""

from typing import Annotated, Literal

from pydantic import Field

from app.jobs.specs.common import Common, DatasetId
from app.jobs.specs.slicing_params import SlicingParams
from neusemslice.config import MOST_SHARDS, require_shardable
from neusemslice.errors import ConfigError

SHARD = "shard"
PARTIAL = "partial_"
"""Before the number of a shard: the file with what it found, as the parent's process is given it."""

Shards = Annotated[
    Annotated[int, Field(ge=1, le=MOST_SHARDS)] | Literal["auto"],
    Field(
        description="Share the analysis out to so many workers; the result is the same. `auto`: by the number of "
        "samples. Not for `deeparc` or `flattened`."
    ),
]


class ShardSpec(Common):
    """One part of the analysis of another job; queued by the service itself."""

    kind: Literal["shard"]
    dataset_id: DatasetId
    slicing: SlicingParams
    index: int = Field(ge=0)
    count: int = Field(ge=1, le=MOST_SHARDS)


def check_shards(shards: int | str, slicing: SlicingParams | None) -> None:
    """Raises ConfigError if a number of shards is asked for, and the analysis cannot be shared out or there is none."""
    if shards in (1, "auto"):
        return
    if slicing is None:
        raise ConfigError(
            "shards shares out an analysis, and this job makes none.", field="shards", hint="Leave shards out."
        )
    try:
        require_shardable(slicing.to_config(seed=0))
    except ConfigError as error:
        raise ConfigError(error.message, field="shards", hint="Leave shards out.") from error


def is_shardable(slicing: SlicingParams) -> bool:
    """Whether the analysis can be shared out."""
    try:
        require_shardable(slicing.to_config(seed=0))
    except ConfigError:
        return False
    return True
