"""Increments on real data, beside the paper's rows (tables 7 and 8) and replay.

    python -m benchmarks.increments mnist DATA/mnist.npz
    python -m benchmarks.increments mnist-three DATA/mnist.npz
    python -m benchmarks.increments bytes DATA/mnist.npz
    python -m benchmarks.increments cifar DATA/cifar10-train-a.zip DATA/cifar10-test.zip MODELS/alexnet-cifar10

Each prints markdown. The first network is trained here; for CIFAR-10 it is made from a trained one of ten classes, or
with `--first-epochs` trained from nothing on the first task.
"""

import argparse
import json
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from neusemslice import IncrementConfig, IncrementMemory, SlicingConfig, TaskFree, learn_increment, trace
from neusemslice.architecture import build_network
from neusemslice.batches import Batches
from neusemslice.data import ImportLimits, Preprocess, import_dataset, open_dataset
from neusemslice.increments import Incremented
from neusemslice.increments.discriminant import find_directions
from neusemslice.increments.features import FeatureReader
from neusemslice.tracing import SliceableModel
from neusemslice.training import InMemory, batches_of, train
from neusemslice.training_config import TrainingConfig
from neusemslice.weights import load_network

PAPER_TWO = {
    "retrain": "0 / 98.50",
    "replay 5 %": "87.54 / 98.32",
    "replay 10 %": "91.86 / 98.13",
    "replay 100 %": "97.20 / 97.48",
    "global": "93.58 / 97.75",
    "categorywise": "96.85 / 97.44",
    "semantic": "98.89 / 97.20",
    "semantic+replay 10 %": "98.94 / 97.17",
}
PAPER_THREE = {"semantic": "98.95 / 97.43 / 97.93"}
PAPER_CIFAR = {"semantic": "84.65 / 87.60"}


class Data:
    """Labelled samples in memory, by split and task."""

    def __init__(self, train_part: InMemory, test_part: InMemory, tasks: Sequence[range]) -> None:
        self.train, self.test, self.tasks = train_part, test_part, tasks

    def of(self, part: InMemory, labels: range) -> Batches:
        rows = ((part.labels >= labels.start) & (part.labels < labels.stop)).nonzero()[:, 0]
        return batches_of(InMemory(part.inputs[rows], part.labels[rows]), 256)

    def seen(self, tasks: int) -> Batches:
        return self.of(self.test, range(self.tasks[tasks - 1].stop))


def mnist(path: Path, tasks: Sequence[range]) -> Data:
    arrays = np.load(path)
    parts = []
    for split in ("train", "test"):
        inputs = torch.from_numpy(arrays[f"x_{split}"]).float()[:, None] / 255
        parts.append(InMemory(inputs, torch.from_numpy(arrays[f"y_{split}"]).long()))
    return Data(*parts, tasks)


def first_mlp(data: Data, epochs: int) -> SliceableModel:
    """The paper's MLP, trained on the first task."""
    torch.manual_seed(0)
    categories = len(data.tasks[0])
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, categories)
    )
    graph = trace(network, data.test.inputs[:1]).graph_module.requires_grad_()
    batches = data.of(data.train, data.tasks[0])
    train(graph, batches.samples, TrainingConfig(epochs=epochs, schedule="cosine"))
    return trace(graph, data.test.inputs[:1])


def methods(epochs: int, threshold: float, learning_rate: float) -> Iterator[tuple[str, IncrementConfig]]:
    training = TrainingConfig(epochs=epochs, learning_rate=learning_rate, schedule="cosine")
    semantic = SlicingConfig(threshold=threshold)
    yield "retrain", IncrementConfig(method="retrain", training=training)
    for share in (0.05, 0.1, 1.0):
        yield (
            f"replay {share:.0%}".replace("%", " %"),
            IncrementConfig(method="replay", replay_fraction=share, training=training),
        )
    yield "deeparc", IncrementConfig(method="deeparc", training=training)
    yield "global", IncrementConfig(method="global", training=training)
    yield "categorywise", IncrementConfig(method="categorywise", training=training)
    yield "semantic", IncrementConfig(method="semantic", slicing=semantic, training=training)
    yield "semantic+replay 10 %", IncrementConfig(method="semantic+replay", slicing=semantic, training=training)
    yield "isolated", IncrementConfig(slicing=semantic, training=training)


def learn_all(model: SliceableModel, data: Data, config: IncrementConfig) -> Incremented:
    """All further tasks, one after the other."""
    old = None if config.method == "retrain" else data.of(data.train, data.tasks[0])
    memory: IncrementMemory | None = None
    for number in range(1, len(data.tasks)):
        result = learn_increment(
            model,
            old,
            data.of(data.train, data.tasks[number]),
            config,
            memory=memory,
            evaluation=data.seen(number + 1) if number == len(data.tasks) - 1 else None,
        )
        model, old, memory = result.traced, None, result.memory
    return result


def percent(values: Sequence[float | None]) -> str:
    return "-" if None in values else " / ".join(f"{100 * value:.2f}" for value in values if value is not None)


def table(
    model: SliceableModel, data: Data, configs: Iterator[tuple[str, IncrementConfig]], paper: dict[str, str]
) -> None:
    print(
        "| method | paper | task known | through the slice | plain vote | task-free | drift | bytes kept | free | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, config in configs:
        started = time.perf_counter()
        report = learn_all(model, data, config).report
        columns = [
            percent([getattr(task, field) for task in report.accuracies])
            for field in ("with_task", "through_slice", "vote", "task_free")
        ]
        free = report.free_parameters / report.parameters if config.freezes else 1.0
        print(
            f"| {name} | {paper.get(name, '-')} | {' | '.join(columns)} | {report.drift:.2g} | "
            f"{sum(report.bytes_kept.values()):,} | {free:.0%} | {time.perf_counter() - started:.0f} |",
            flush=True,
        )


def bytes_curve(data: Data, theta: float) -> None:
    """Accuracy over all ten outputs, without being told the task, by the bytes that are kept; no image is."""
    model = first_mlp(data, 6)
    print("| theta | directions | bytes kept | ten-way | first task | second task |")
    print("|---|---|---|---|---|---|")
    training = TrainingConfig(epochs=4, schedule="cosine")
    result = learn_all(model, data, IncrementConfig(slicing=SlicingConfig(threshold=theta), training=training))
    kept = result.memory.tasks[0].kept
    assert kept is not None
    reader = FeatureReader(result.traced, kept)
    features = [[found for found, _ in reader.batches(data.of(data.train, task))] for task in data.tasks]
    labels = [[found for _, found in data.of(data.train, task)] for task in data.tasks]
    for directions in (8, 16, 32, 64, 128, 256):
        known = find_directions(torch.cat(features[0])[:2000], reader.sizes, directions)
        for task, values, numbers in zip(data.tasks, features, labels, strict=True):
            known = known.with_categories(zip(values, numbers, strict=True), task)
        memory = replace(result.memory, discriminant=known)
        decide = TaskFree(result.traced, memory)
        hits = torch.cat([decide(inputs) == numbers for inputs, numbers in batches_of(data.test, 1000)]).double()
        first = data.test.labels < data.tasks[0].stop
        shown = " | ".join(f"{100 * part.mean():.2f}" for part in (hits, hits[first], hits[~first]))
        print(f"| {theta} | {directions} | {sum(memory.bytes_kept().values()):,} | {shown} |", flush=True)


def cifar(train_zip: Path, test_zip: Path, limit: int, tests: int) -> Data:
    """The first images of each class, in one archive of two splits."""
    preprocess = Preprocess.from_dict(
        {"scale": 1 / 255, "mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616]}
    )
    with tempfile.TemporaryDirectory() as folder:
        both, stored = Path(folder) / "both.zip", Path(folder) / "stored"
        with zipfile.ZipFile(both, "w") as archive:
            for path, most in ((train_zip, limit), (test_zip, tests)):
                taken: Counter[str] = Counter()
                with zipfile.ZipFile(path) as source:
                    for name in sorted(source.namelist()):
                        if taken[str(Path(name).parent)] < most and name.endswith(".jpg"):
                            taken[str(Path(name).parent)] += 1
                            archive.writestr(name, source.read(name))
        import_dataset(both, stored, preprocess=preprocess, limits=ImportLimits())
        dataset = open_dataset(stored)
        parts = []
        for split in ("train", "test"):
            inputs, labels = (torch.cat(part) for part in zip(*dataset.batches(split, 1000), strict=True))
            parts.append(InMemory(inputs, labels))
    return Data(*parts, [range(5), range(5, 10)])


def five_of_ten(weights: Path, data: Data) -> SliceableModel:
    """The network of ten classes with its first five outputs, tuned to them for an epoch."""
    spec = json.loads(weights.with_suffix(".json").read_text())
    network = load_network(spec, weights.with_suffix(".safetensors")).float()
    path, head = [(path, layer) for path, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1]
    five = nn.Linear(head.in_features, 5)
    five.weight.data, five.bias.data = head.weight.data[:5].clone(), head.bias.data[:5].clone()
    network.set_submodule(path, five)
    graph = trace(network, data.test.inputs[:1]).graph_module.requires_grad_()
    train(graph, data.of(data.train, data.tasks[0]).samples, TrainingConfig(epochs=1, learning_rate=1e-4))
    return trace(graph, data.test.inputs[:1])


class Flipped(InMemory):
    """Images, every other one of them mirrored by chance."""

    def take(self, rows: Tensor) -> Tensor:
        images = super().take(rows)
        mirrored = torch.rand(len(images)) < 0.5
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def first_of_five(weights: Path, data: Data, epochs: int) -> SliceableModel:
    """The same architecture with five outputs, from random weights, trained on the first task alone."""
    spec = json.loads(weights.with_suffix(".json").read_text())
    spec["kwargs"]["layers"][-1]["kwargs"]["out_features"] = 5
    torch.manual_seed(0)
    network = build_network(spec).to_empty(device="cpu")
    for layer in network.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    graph = trace(network, data.test.inputs[:1]).graph_module.requires_grad_()
    samples = data.of(data.train, data.tasks[0]).samples
    config = TrainingConfig(epochs=epochs, batch_size=64, learning_rate=3e-4, schedule="cosine")
    train(graph, Flipped(samples.inputs, samples.labels), config)
    return trace(graph, data.test.inputs[:1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["mnist", "mnist-three", "bytes", "cifar"])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--limit", type=int, default=500, help="training images of each class, for cifar")
    parser.add_argument("--tests", type=int, default=500, help="test images of each class, for cifar")
    parser.add_argument("--first-epochs", type=int, default=0, help="train the first network from nothing, for cifar")
    parser.add_argument("--only", default="", help="methods, separated by commas; all by default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = (
        (name, config)
        for name, config in methods(given.epochs, given.threshold, given.learning_rate)
        if not given.only or name in given.only.split(",")
    )
    if given.what == "bytes":
        bytes_curve(mnist(given.files[0], [range(5), range(5, 10)]), given.threshold)
    elif given.what == "mnist":
        data = mnist(given.files[0], [range(5), range(5, 10)])
        table(first_mlp(data, 6), data, chosen, PAPER_TWO)
    elif given.what == "mnist-three":
        data = mnist(given.files[0], [range(3), range(3, 6), range(6, 10)])
        table(first_mlp(data, 6), data, chosen, PAPER_THREE)
    else:
        data = cifar(given.files[0], given.files[1], given.limit, given.tests)
        first = first_of_five(given.files[2], data, given.first_epochs) if given.first_epochs else None
        table(first or five_of_ten(given.files[2], data), data, chosen, PAPER_CIFAR)


if __name__ == "__main__":
    main()
