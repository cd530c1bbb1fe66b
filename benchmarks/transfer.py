"""A large file up and down through a real `neusemslice serve` on loopback, against a plain copy of it on the same disk.

`python -m benchmarks.transfer [GIB]` needs six times as much room in the folder for temporary files. All times are of
one run, each the best of ROUNDS: a virtual machine's host hands out memory page by page, at a tenth of the speed of a
copy, and whoever comes first pays for it. The memory is the growth of the API's process over the time before the first
transfer. The upload's floor is the three SHA-256 that its promises need (each part by the client and by the server, the
whole by the server), shared by all cores.
"""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import httpx
import psutil
from sqlalchemy import update

from app.artifacts.orm import AssetStatus, ModelRow
from app.db import Database
from neusemslice_cli.client import Client

MIB = 1024**2
GIB = 1024**3
READY_S = 120.0
ROUNDS = 3
ARCHITECTURE = {"builder": "mlp", "kwargs": {"sizes": [4, 3, 2]}, "input_shape": [4]}


def main() -> None:
    gib = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = _write(folder / "source", int(gib * GIB))
        with _serving(folder / "data") as (url, key, api), Client(url, key) as client:
            client.upload_file(_write(folder / "warm", 8 * MIB))
            seconds: dict[str, list[float]] = defaultdict(list)
            with _growth(api) as grown:
                for _ in range(ROUNDS):
                    seconds["copy"].append(_copy(source, folder / "copy", sync=False))
                    seconds["synced"].append(_copy(source, folder / "copy", sync=True))
                    started = time.perf_counter()
                    upload = client.upload_file(source)
                    seconds["up"].append(time.perf_counter() - started)
                    model = _model_of(folder / "data", client, upload)
                    started = time.perf_counter()
                    client.download(f"/v1/models/{model}/content", folder / "down").unlink()
                    seconds["down"].append(time.perf_counter() - started)
            floor = 3 * _hash(source) / (os.cpu_count() or 1)
    best = {name: min(taken) for name, taken in seconds.items()}
    plain, synced = best["copy"], best["synced"]
    print("| | seconds | MB/s | of a plain copy | of a copy that is on the disk |")
    print("|---|---|---|---|---|")
    for row, took_s in (
        ("plain copy", plain),
        ("copy and fsync", synced),
        (f"three SHA-256 on {os.cpu_count()} cores, the upload's floor", floor),
        ("upload in parts, verified whole and on the disk", best["up"]),
        ("download, verified", best["down"]),
    ):
        rate = gib * GIB / took_s / 1e6
        print(f"| {row} | {took_s:.2f} | {rate:.0f} | {plain / took_s:.2f}x | {synced / took_s:.2f}x |")
    print(f"\nThe API's memory grew by {grown[0] / MIB:.0f} MiB.")


def _write(path: Path, size: int) -> Path:
    block = os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(size // MIB):
            file.write(number.to_bytes(8, "big") + block[8:])
    return path


def _copy(source: Path, place: Path, *, sync: bool) -> float:
    """Seconds of a copy into a new file."""
    started = time.perf_counter()
    shutil.copyfile(source, place)
    if sync:
        with place.open("rb") as file:
            os.fsync(file.fileno())
    taken = time.perf_counter() - started
    place.unlink()
    return taken


def _hash(source: Path) -> float:
    """Processor seconds of one SHA-256 of the file."""
    started = time.process_time()
    with source.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    return time.process_time() - started


def _model_of(data_dir: Path, client: Client, upload: dict[str, str]) -> str:
    """A model whose content the upload is, as if an inspection had accepted it as it came."""
    made = {"upload": upload["id"], "spec": ARCHITECTURE}
    model_id: str = client.post("/v1/models", made)["id"]
    database = Database((data_dir / "url").read_text())
    ready = {"status": AssetStatus.READY.value, "digest": upload["sha256"]}
    with database.transaction() as session:
        session.execute(update(ModelRow).where(ModelRow.id == model_id).values(ready))
    database.dispose()
    return model_id


@contextmanager
def _growth(api: psutil.Process) -> Iterator[list[float]]:
    """How far the process's resident memory rises above what it is now."""
    before, grown, stop = api.memory_info().rss, [0.0], Event()

    def sample() -> None:
        while not stop.wait(0.02):
            grown[0] = max(grown[0], api.memory_info().rss - before)

    sampler = Thread(target=sample)
    sampler.start()
    try:
        yield grown
    finally:
        stop.set()
        sampler.join()


@contextmanager
def _serving(data_dir: Path) -> Iterator[tuple[str, str, psutil.Process]]:
    """A server process of its own on a database of its own, with its address, a key, and the process."""
    from app.embedded_postgres import database_url
    from app.settings import Settings

    data_dir.mkdir()
    with database_url(Settings(data_dir=data_dir, database_url=None)) as database, socket.socket() as probe:
        (data_dir / "url").write_text(database)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [sys.executable, "-m", "neusemslice_cli.main", "serve", "--port", str(port), "--api-only"]
        environment = os.environ | {"DATABASE_URL": database}
        with (data_dir / "log").open("wb") as log:
            process = subprocess.Popen([*command, "--data-dir", str(data_dir)], env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, data_dir / "log")
            yield url, (data_dir / "api-key").read_text().strip(), psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _wait_until_ready(url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=2).is_success:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not become ready: {log.read_text()[-2000:]}")


if __name__ == "__main__":
    main()
