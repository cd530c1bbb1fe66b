"""How many requests a project may send: draws from its bucket, spent in this process."""

import asyncio
import math
import time
from collections import defaultdict
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from app.db import Database
from app.errors import RateLimitedError
from app.projects.keys import Principal
from app.projects.request_bucket import WINDOW_S, Draw, draw

SPEND_WITHIN_S = 1.0
POLICY = "project"
NOTHING = Draw(taken=0, left=0.0, wait_s=0.0)


@dataclass(frozen=True)
class Allowance:
    """Whether a request may go on, and what the client is told of its project's limit."""

    admitted: bool
    per_minute: int
    remaining: int
    wait_s: int
    """Until the next request may come; if this one may go on, until a whole minute's requests may come at once."""

    def headers(self) -> dict[str, str]:
        """As draft-ietf-httpapi-ratelimit-headers has it."""
        return {
            "RateLimit-Policy": f'"{POLICY}";q={self.per_minute};w={WINDOW_S}',
            "RateLimit": f'"{POLICY}";r={self.remaining};t={self.wait_s}',
        }


@dataclass
class _Purse:
    """What this process has drawn for a project and not spent."""

    drawn: Draw = NOTHING
    drawn_at: float = 0.0
    unspent: int = 0
    drawing: asyncio.Lock = field(default_factory=asyncio.Lock)


class RequestRates:
    """Admits requests, for one process; the buckets in Postgres hold all processes to the limit together."""

    def __init__(self) -> None:
        self._purses: defaultdict[str, _Purse] = defaultdict(_Purse)

    async def admit(self, database: Database, principal: Principal) -> Allowance | None:
        """Count a request against its project's limit; None if the project has none."""
        per_minute = principal.requests_per_minute
        if per_minute is None:
            return None
        purse = self._purses[principal.project_id]
        async with purse.drawing:
            now = time.monotonic()
            is_fresh = now - purse.drawn_at < SPEND_WITHIN_S
            if not (is_fresh and purse.unspent) and now >= purse.drawn_at + purse.drawn.wait_s:
                given_back, purse.unspent = purse.unspent, 0
                purse.drawn = await run_in_threadpool(_draw, database, principal.project_id, per_minute, given_back)
                purse.unspent, purse.drawn_at = purse.drawn.taken, time.monotonic()
            if purse.unspent:
                purse.unspent -= 1
                return _admitted(purse, per_minute)
            until = purse.drawn_at + purse.drawn.wait_s - time.monotonic()
            return Allowance(False, per_minute, 0, max(1, math.ceil(until)))


def too_many(allowance: Allowance) -> RateLimitedError:
    """The refusal of a request that was not admitted."""
    return RateLimitedError(
        f"The project may send {allowance.per_minute} requests a minute, and has sent them.",
        hint="Wait as long as Retry-After says; watch the field RateLimit; use ?wait=30 or an event stream in place of "
        "polling. The operator sets the limit: `neusemslice projects set NAME --requests-per-minute`.",
        retry_after_s=allowance.wait_s,
    )


def _draw(database: Database, project_id: str, per_minute: int, given_back: int) -> Draw:
    with database.transaction() as session:
        return draw(session, project_id, per_minute, given_back=given_back)


def _admitted(purse: _Purse, per_minute: int) -> Allowance:
    remaining = purse.unspent + int(purse.drawn.left)
    until_full_s = (per_minute - remaining) * WINDOW_S / per_minute
    return Allowance(True, per_minute, remaining, math.ceil(until_full_s))
