"""The body of an answer, saved while it arrives: hashing and writing go on while the next piece comes."""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import urllib3

PIECE_BYTES = 1024 * 1024


def save(response: urllib3.BaseHTTPResponse, destination: Path) -> str:
    """Write the body to a file, with two pieces of it in memory. The SHA-256 of what was written."""
    sha256 = hashlib.sha256()
    with destination.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as writer:

        def keep(piece: bytes) -> None:
            sha256.update(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[file.write(rest) :]

        keeping: Future[None] | None = None
        for piece in response.stream(PIECE_BYTES, decode_content=False):
            if keeping is not None:
                keeping.result()
            keeping = writer.submit(keep, piece)
        if keeping is not None:
            keeping.result()
    return sha256.hexdigest()
