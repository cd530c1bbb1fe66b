"""Keys that were verified a moment ago, so that not every request asks the database."""

import hashlib
import time
from collections import OrderedDict
from threading import Lock

from app.projects.keys import Principal

MOST = 10_000


class KeyCache:
    """For one process. What is kept is the digest of a key, and who holds it, for a few seconds."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()
        self._lock = Lock()

    def find(self, key: str) -> Principal | None:
        """Who holds `key`, if that was found out a moment ago."""
        with self._lock:
            principal, until = self._known.get(_digest(key), (None, 0.0))
        return principal if time.monotonic() < until else None

    def keep(self, key: str, principal: Principal, for_s: float) -> None:
        """Remember who holds `key` for so long, or for as long as it is valid if that is shorter."""
        for_s = for_s if principal.valid_s is None else min(for_s, principal.valid_s)
        digest = _digest(key)
        with self._lock:
            self._known[digest] = (principal, time.monotonic() + for_s)
            self._known.move_to_end(digest)
            while len(self._known) > MOST:
                self._known.popitem(last=False)

    def forget(self, key_id: str) -> None:
        """Ask the database again about this key."""
        with self._lock:
            for digest in [digest for digest, (principal, _) in self._known.items() if principal.key_id == key_id]:
                del self._known[digest]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
