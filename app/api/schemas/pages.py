"""One page of a list."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from pydantic import BaseModel

ItemT = TypeVar("ItemT", bound=BaseModel)


class Page(BaseModel, Generic[ItemT]):
    """One page of a list, newest first."""

    data: list[ItemT]
    next_cursor: str | None


def page(items: Sequence[ItemT], ids: Sequence[str], limit: int) -> "Page[ItemT]":
    """The first `limit` of `items`, which were asked for with one to spare."""
    return Page(data=list(items[:limit]), next_cursor=ids[limit - 1] if len(items) > limit else None)
