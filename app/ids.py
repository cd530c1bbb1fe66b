"""Typed ids: a prefix and 26 characters that sort by creation time and cannot be guessed (ULID)."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u


def new_id(prefix: str) -> str:
    """A fresh id such as `job_01k9…`: 48 bits of milliseconds, then 80 random bits."""
    return _written(prefix, time.time_ns() // 1_000_000, secrets.randbits(80))


def first_id(prefix: str, at_s: float) -> str:
    """Earlier ids than this time (seconds since the epoch) sort before it, later ones after it."""
    return _written(prefix, int(at_s * 1000), 0)


def _written(prefix: str, milliseconds: int, random: int) -> str:
    number = milliseconds << 80 | random
    return prefix + "_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
