"""`neusemslice demo`: train two small networks, then slice and shrink them through the real service.

Everything after the training is what an outside client would do, over HTTP, against a server in its own process.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import urllib3
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from neusemslice_cli.client import Client
from neusemslice_cli.training import TrainedNetwork, load_digits, train_networks

console = Console()

READY_S = 60.0
STOP_S = 15.0
THRESHOLD = 0.95
SWEEP = [0.7, 0.8, 0.9, 0.95, 0.99]

RELOAD = """
import sys, numpy, torch
from neusemslice import load_checkpoint
network = load_checkpoint(sys.argv[1])
data = numpy.load(sys.argv[2])
inputs = torch.from_numpy(data["x_test"]).float()[:, None] / 16
print((network(inputs).argmax(1) == torch.from_numpy(data["y_test"])).float().mean().item())
"""


def run_demo(output: Path) -> None:
    """Run the whole story and leave its files in `output`."""
    started = time.monotonic()
    output = output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    with console.status("Training a convolutional network and an MLP on handwritten digits …"):
        dataset = load_digits(output / "digits.npz")
        networks = train_networks(dataset, output)
    with served(output / "service") as client:
        console.print("The service is up: API, Postgres and worker. The rest goes over HTTP.")
        digits = client.upload_dataset(dataset, {"preprocess": {"scale": 1 / 16}}, name="digits")
        rows = [_shrink(client, network, digits, output) for network in networks]
    _show(rows)
    console.print(f"Took {time.monotonic() - started:.0f} s. The files are in {output}:")
    for path in sorted(output.glob("*.*")):
        console.print(f"  {path.name:36} {path.stat().st_size / 1024:9.1f} KiB")


@contextmanager
def served(data_dir: Path) -> Iterator[Client]:
    """A server in its own process, with a client that holds its first API key."""
    data_dir.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", data_dir / "server.log"
    command = [sys.executable, "-m", "neusemslice_cli.main", "serve", "--port", str(port), "--data-dir", str(data_dir)]
    own = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=own)
    try:
        _wait_until_ready(url, process, log)
        with Client(url, (data_dir / "api-key").read_text().strip()) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if urllib3.request("GET", f"{url}/readyz", timeout=2, retries=False).status == HTTPStatus.OK:
                return
        except urllib3.exceptions.HTTPError:
            time.sleep(0.1)
    raise RuntimeError(f"The server did not get ready. The end of {log}:\n{log.read_text()[-3000:]}")


def _shrink(client: Client, network: TrainedNetwork, digits: dict[str, Any], output: Path) -> dict[str, Any]:
    """Upload, slice, restructure, download, and reload in a fresh process."""
    model = client.upload_model(network.weights, network.architecture, name=network.name)
    both = {"model_id": model["id"], "dataset_id": digits["id"]}
    slicing = {"strategy": "semantic", "metric": "taylor", "threshold": THRESHOLD}
    sliced = _follow(client, {"kind": "slice", **both, "slicing": slicing, "sweep": SWEEP}, f"slice {network.name}")
    (slice_artifact,) = [item for item in sliced["artifacts"] if item["name"] == "slice.safetensors"]
    job = {"kind": "restructure", **both, "slice_id": slice_artifact["id"], "name": f"{network.name}-small"}
    restructured = _follow(client, job, f"restructure {network.name}")
    client.download(slice_artifact["links"]["content"], output / f"{network.name}-slice.safetensors")
    small = client.get(f"/v1/models/{restructured['result']['model_id']}")
    checkpoint = client.download(small["links"]["content"], output / f"{network.name}-small.safetensors")
    reload = [sys.executable, "-c", RELOAD, str(checkpoint), str(output / "digits.npz")]
    reloaded = float(subprocess.run(reload, check=True, capture_output=True, text=True).stdout)
    return {"name": network.name, "sweep": sliced["result"]["sweep"], "reloaded": reloaded, **restructured["result"]}


def _follow(client: Client, job: dict[str, Any], title: str) -> dict[str, Any]:
    """Submit a job and show its progress until it has ended."""
    columns = (TextColumn("{task.fields[title]:24}"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        line = bar.add_task("queued", total=1.0, title=title)

        def show(now: dict[str, Any]) -> None:
            progress = now["progress"] or {"fraction": 0, "stage": now["status"]}
            bar.update(line, completed=progress["fraction"], description=progress["stage"])

        ended = client.wait(client.submit(job), on_change=show)
        if ended["status"] != "succeeded":
            raise RuntimeError(f"{title} ended as {ended['status']}: {ended['error']}")
        bar.update(line, completed=1.0, description="done")
    return ended


def _show(rows: list[dict[str, Any]]) -> None:
    """Before and after, and what other thresholds would have given."""
    table = Table(title=f"Before and after: semantic, taylor, theta {THRESHOLD}")
    for column in ("network", "", "accuracy", "params", "file", "1 image", "64 images"):
        table.add_column(column, justify="left" if column in ("network", "") else "right")
    for row in rows:
        for when in ("before", "after"):
            values = row[when]
            table.add_row(
                row["name"] if when == "before" else "",
                when,
                f"{values['accuracy']:.2%}",
                f"{values['parameters']:,}",
                f"{values['file_bytes'] / 1024:.1f} KiB",
                f"{values['latency_ms']['1']:.3f} ms",
                f"{values['latency_ms']['64']:.3f} ms",
            )
        table.add_row("", "reloaded", f"{row['reloaded']:.2%}", end_section=True)
    console.print(table)
    sweep = Table(title="The same analysis cut at other thresholds")
    for column in ("network", "theta", "parameters removed", "accuracy"):
        sweep.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        for point in row["sweep"]:
            cut, removed, accuracy = point["cut"], point["compression_rate"], point["accuracy"]
            sweep.add_row(row["name"], f"{cut:g}", f"{removed:.1%}", f"{accuracy:.2%}")
    console.print(sweep)
