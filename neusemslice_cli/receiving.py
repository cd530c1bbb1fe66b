"""The body of an answer, saved while it arrives: hashing and writing go on while the next piece comes."""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import urllib3

PIECE_BYTES = 1024 * 1024
WRITE_BYTES = 64 * 1024
"""At once: a file's pages come in folios as large as what is written, and in a virtual machine large free blocks of
memory are those that its host has taken back, and has to find again.
"""


def save(response: urllib3.BaseHTTPResponse, destination: Path) -> str:
    """Write the body to a file, with two pieces of it in memory. The SHA-256 of what was written."""
    sha256 = hashlib.sha256()
    with destination.open("wb", buffering=0) as file, ThreadPoolExecutor(2) as threads:

        def write(piece: bytes) -> None:
            rest = memoryview(piece)
            while rest:
                rest = rest[file.write(rest[:WRITE_BYTES]) :]

        under_way: list[Future[None]] = []
        for piece in response.stream(PIECE_BYTES, decode_content=False):
            for done in under_way:
                done.result()
            under_way = [threads.submit(sha256.update, piece), threads.submit(write, piece)]
        for done in under_way:
            done.result()
    return sha256.hexdigest()
