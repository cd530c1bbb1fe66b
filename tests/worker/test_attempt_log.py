"""What is kept of what a process printed."""

from pathlib import Path

import pytest

from worker.attempt_log import HEAD_BYTES, TAIL_BYTES, read_bounded


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


def test_little_is_kept_whole(log: Path) -> None:
    log.write_bytes(b"epoch 1\n\xff\x00")
    assert read_bounded(log) == b"epoch 1\n\xff\x00"
    assert read_bounded(log.with_name("none")) == b""


def test_of_much_the_beginning_and_the_end_are_kept(log: Path) -> None:
    log.write_bytes(b"a" * HEAD_BYTES + b"b" * 1000 + b"c" * TAIL_BYTES)
    kept = read_bounded(log)
    assert kept == b"a" * HEAD_BYTES + b"\n[1000 bytes left out]\n" + b"c" * TAIL_BYTES


@pytest.mark.parametrize(
    ("printed", "kept"),
    [
        (b"key nss_0a1b2c_00ff00ff.", b"key [redacted]."),
        (b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw= x", b"[redacted] x"),
        (b"postgresql://me:secret@db:5432/x", b"postgresql://[redacted]@db:5432/x"),
        (b"see https://example.org/a:b@c", b"see https://example.org/a:b@c"),
    ],
)
def test_nothing_secret_is_kept(log: Path, printed: bytes, kept: bytes) -> None:
    log.write_bytes(printed)
    assert read_bounded(log) == kept
