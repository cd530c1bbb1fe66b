"""The bounded form of what a job's process printed: its beginning and its end, without anything secret."""

import os
import re
from pathlib import Path

HEAD_BYTES = 256 * 1024
TAIL_BYTES = 768 * 1024
_SECRET = re.compile(rb"nss_[0-9a-f]+_[0-9a-f]+|whsec_[0-9A-Za-z+/=]+|(?<=://)[^\s/@:]+:[^\s/@]+(?=@)")
"""API keys, webhook secrets, and the credentials in an address. The process is given none; its input may hold some."""


def read_bounded(path: Path) -> bytes:
    """The file, or its two ends with a line between them that says how much is left out; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= HEAD_BYTES + TAIL_BYTES:
                return _SECRET.sub(b"[redacted]", file.read(HEAD_BYTES + TAIL_BYTES))
            head = file.read(HEAD_BYTES)
            file.seek(size - TAIL_BYTES)
            tail = file.read(TAIL_BYTES)
    except FileNotFoundError:
        return b""
    gap = b"\n[%d bytes left out]\n" % (size - HEAD_BYTES - TAIL_BYTES)
    return _SECRET.sub(b"[redacted]", head) + gap + _SECRET.sub(b"[redacted]", tail)
