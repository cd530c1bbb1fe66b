"""Whatever is sent, the answer is a clear 4xx or a rejection that says what to do, and the server keeps serving."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from tests.e2e.conftest import ARCHITECTURE, CATEGORIES, Service, upload

Make = Callable[[Path], bytes]
LAYERS = [{"type": "Flatten"}, {"type": "Linear", "kwargs": {"in_features": 64, "out_features": 4}}]


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def scripted(_: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02N.")
        archive.writestr("net/code/__torch__.py", b"def forward(self): ...")
        archive.writestr("net/constants.pkl", b"\x80\x02).")
        archive.writestr("net/version", b"3\n")
    return stream.getvalue()


def other_shapes(network: Path) -> bytes:
    tensors = load_file(network)
    tensors["1.weight"] = tensors["1.weight"][:, :60].contiguous()
    save_file(tensors, network.with_suffix(".other"))
    return network.with_suffix(".other").read_bytes()


def with_nan(network: Path) -> bytes:
    tensors = load_file(network)
    tensors["3.bias"][2] = float("nan")
    save_file(tensors, network.with_suffix(".nan"))
    return network.with_suffix(".nan").read_bytes()


BAD_WEIGHTS: dict[str, tuple[Make, str, str]] = {
    "pickled module": (lambda _: saved(nn.Linear(2, 2)), "unsafe_file", "state_dict"),
    "TorchScript": (scripted, "unsafe_file", "TorchScript"),
    "truncated": (lambda network: network.read_bytes()[:-10], "invalid_weights", "damaged"),
    "header bomb": (lambda _: b"\xff" * 7 + b"\x7f" + b"{}", "invalid_weights", ""),
    "other shapes": (other_shapes, "invalid_weights", "1.weight"),
    "NaN": (with_nan, "invalid_weights", "3.bias"),
}


@pytest.fixture(scope="module")
def http(service: Service):
    with service.http() as http:
        yield http


def send(http: httpx.Client, collection: str, content: bytes, spec: Any) -> dict[str, Any]:
    """Upload, wait for the inspection, and check that the server still serves."""
    answer = http.post(f"/v1/{collection}", data={"spec": json.dumps(spec)}, files={"file": ("file", content)})
    assert answer.status_code == 202, answer.text
    asset = http.get(answer.headers["location"], params={"wait": 30}).json()
    assert http.get("/livez").status_code == 200
    return asset


def assert_rejected(asset: dict[str, Any], code: str, *words: str) -> None:
    assert asset["status"] == "rejected", asset
    error = asset["error"]
    assert error["code"] == code, error
    assert error["detail"]
    assert error["hint"]
    for word in words:
        assert word in error["detail"] + error["hint"], error


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights_are_rejected(http: httpx.Client, network_file: Path, tmp_path: Path, name: str) -> None:
    make, code, word = BAD_WEIGHTS[name]
    copy = tmp_path / "mlp.safetensors"
    copy.write_bytes(network_file.read_bytes())
    assert_rejected(send(http, "models", make(copy), ARCHITECTURE), code, word)


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ({"builder": "torchvision/resnet9000", "input_shape": [3, 8, 8]}, "invalid_architecture", ["resnet9000"]),
        (
            {"builder": "layers", "kwargs": {"layers": [*LAYERS, {"type": "Exec"}]}, "input_shape": [1, 8, 8]},
            "invalid_architecture",
            ["Exec", "layers[2]"],
        ),
        (ARCHITECTURE | {"input_shape": [1, 9, 9]}, "unsupported_model", ["input"]),
    ],
)
def test_bad_architectures_are_rejected(
    http: httpx.Client, network_file: Path, spec: dict[str, Any], code: str, words: list[str]
) -> None:
    assert_rejected(send(http, "models", network_file.read_bytes(), spec), code, *words)


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def images(samples: int = 40, shape: tuple[int, ...] = (8, 8)) -> np.ndarray:
    return np.zeros((samples, *shape), dtype=np.uint8)


def zipped(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(name: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = 3
        archive.addfile(info, io.BytesIO(b"png"))
    return stream.getvalue()


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


LABELS = np.arange(40) % CATEGORIES
BAD_DATASETS: dict[str, tuple[bytes, str]] = {
    "object array": (npz(x_train=np.array([{}] * 40, dtype=object), y_train=LABELS), "x_train"),
    "empty": (npz(x_train=images(0), y_train=LABELS[:0]), "x_train"),
    "negative labels": (npz(x_train=images(), y_train=LABELS - 1), "y_train"),
    "a category without samples": (npz(x_train=images(), y_train=np.where(LABELS == 2, 3, LABELS)), "2"),
    "labels outside the classes": (
        npz(x_train=images(), y_train=LABELS, x_test=images(), y_test=LABELS + 1),
        "Category 4",
    ),
    "zip slip": (zipped({"train/a/../../../evil.png": png(), "train/b/1.png": png()}), ".."),
    "absolute path": (zipped({"/etc/cron.d/evil.png": png()}), "/etc/cron.d"),
    "tar slip": (tarred("../evil.png"), ".."),
    "zip bomb": (zipped({"train/a/1.png": bytes(300_000_000)}), "unpack"),
    "no image": (zipped({"train/a/1.png": b"no image", "train/b/1.png": png()}), "train/a/1.png"),
}


@pytest.mark.parametrize("name", BAD_DATASETS)
def test_bad_datasets_are_rejected(http: httpx.Client, name: str) -> None:
    content, word = BAD_DATASETS[name]
    assert_rejected(send(http, "datasets", content, {}), "invalid_dataset", word)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": images(shape=(9, 9)), "y_train": LABELS}, "[1, 9, 9]"),
        ({"x_train": images(), "y_train": LABELS % 2}, "number of categories 4, the dataset has 2"),
    ],
)
def test_a_dataset_of_the_wrong_shape_is_a_422_before_any_job(
    service: Service, http: httpx.Client, network_file: Path, dataset_file: Path, arrays: dict[str, Any], words: str
) -> None:
    with service.client() as client:
        both = upload(client, network_file, dataset_file)
    other = send(http, "datasets", npz(**arrays), {})
    assert other["status"] == "ready", other["error"]
    answer = http.post("/v1/jobs", json={"kind": "slice", **both, "dataset_id": other["id"]})
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert answer.json()["errors"][0]["pointer"] == "/dataset_id"


def test_a_job_that_cannot_be_done_fails_with_the_reason(
    service: Service, http: httpx.Client, network_file: Path
) -> None:
    """Two samples a category are too few for the unbiased estimator; only the analysis can know."""
    few = send(http, "datasets", npz(x_train=images(8), y_train=np.arange(8) % CATEGORIES), {})
    model = send(http, "models", network_file.read_bytes(), ARCHITECTURE)
    job = {"kind": "slice", "model_id": model["id"], "dataset_id": few["id"]}
    with service.client() as client:
        ended = client.wait(client.submit(job))
    assert ended["status"] == "failed"
    assert ended["error"]["code"] == "invalid_dataset"
    assert "Category 0" in ended["error"]["detail"]
    assert ended["attempt"] == 1
