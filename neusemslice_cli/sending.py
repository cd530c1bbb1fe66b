"""A file sent in parts, several at once; what the service has already is not sent again."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from threading import Lock

import urllib3
from urllib3.exceptions import HTTPError

from neusemslice_cli.answers import Json, ServiceAnswerError, check

OnProgress = Callable[[int, int], None]
"""Told the bytes that the service has, and the file's size."""
Request = Callable[..., urllib3.BaseHTTPResponse]

PARTS_AT_ONCE = 4
TRIES = 6
_PIECE = 1024 * 1024


class Sending:
    """One file on its way. After an interruption, another one with the same `upload` sends what is missing."""

    def __init__(self, request: Request, file: Path, upload: Json, on_progress: OnProgress) -> None:
        self._request = request
        self._file = file
        self._upload = upload
        self._on_progress = on_progress
        self._lock = Lock()
        self._done = sum(part["size_bytes"] for part in upload["parts"])

    def run(self) -> Json:
        """Send what is missing and return the upload once the service has verified it."""
        there = {part["number"] for part in self._upload["parts"]}
        missing = [number for number in range(1, self._upload["part_count"] + 1) if number not in there]
        self._on_progress(self._done, self._upload["size_bytes"])
        if self._upload["status"] == "open":
            with ThreadPoolExecutor(PARTS_AT_ONCE) as threads:
                sending = [threads.submit(self._send, number) for number in missing]
                try:
                    for part in sending:
                        part.result()
                except BaseException:
                    threads.shutdown(cancel_futures=True)
                    raise
        return self._complete()

    def _send(self, number: int) -> None:
        part_bytes, size = self._upload["part_bytes"], self._upload["size_bytes"]
        start = (number - 1) * part_bytes
        length = min(part_bytes, size - start)
        sha256 = hashlib.sha256()
        for piece in _pieces(self._file, start, length):
            sha256.update(piece)
        headers = {"X-Content-SHA256": sha256.hexdigest(), "Content-Length": str(length)}
        path = self._upload["links"]["parts"].format(number=number)
        self._try(lambda: self._request("PUT", path, body=_pieces(self._file, start, length), headers=headers))
        with self._lock:
            self._done += length
            self._on_progress(self._done, size)

    def _complete(self) -> Json:
        while True:
            response = self._try(lambda: self._request("POST", self._upload["links"]["complete"]))
            if response.status != HTTPStatus.ACCEPTED:
                upload: Json = response.json()
                return upload
            time.sleep(float(response.headers.get("retry-after", 1)))

    def _try(self, request: Callable[[], urllib3.BaseHTTPResponse]) -> urllib3.BaseHTTPResponse:
        """Again after a broken connection, and where the service says that later is better."""
        for turn in range(TRIES):
            last = turn == TRIES - 1
            try:
                response = request()
                check(response)
            except HTTPError:
                if last:
                    raise
            except ServiceAnswerError as error:
                if last or not error.is_passing:
                    raise
            else:
                return response
            time.sleep(0.2 * 2**turn)
        raise AssertionError("the last turn returns or raises")


def _pieces(file: Path, start: int, length: int) -> Iterator[bytes]:
    handle = os.open(file, os.O_RDONLY)
    try:
        while length:
            piece = os.pread(handle, min(_PIECE, length), start)
            if not piece:
                raise EOFError(f"{file} has become shorter while it was sent")
            yield piece
            start, length = start + len(piece), length - len(piece)
    finally:
        os.close(handle)
