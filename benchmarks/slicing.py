"""A whole semantic slicing against a plain forward and backward pass over the same images.

    python -m benchmarks.slicing [--images 10000]

The paper's VGG16 for CIFAR-10, scores from all images, coverage from 256 of each category: contributions, features and
every curve with its random control. The plain pass is a training step without the optimizer, at the same batch size.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.networks import vgg16_cifar10
from neusemslice import SlicingConfig, slice_model, trace

METRICS = ("avg", "var", "taylor", "deeplift")
BATCH = 100


class Images:
    """Batches of drawn images, the same on every reading."""

    def __init__(self, images: int, size: int = 32) -> None:
        self.images, self.size = images, size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for start in range(0, self.images, BATCH):
            labels = torch.arange(start, start + BATCH) % 10
            yield torch.randn(BATCH, 3, self.size, self.size, generator=generator), labels

    def __len__(self) -> int:
        return self.images // BATCH


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    data = Images(parser.parse_args().images)
    network = vgg16_cifar10()
    model = trace(network, torch.zeros(1, 3, 32, 32))
    for inputs, labels in Images(2 * BATCH):
        _step(network, inputs, labels)
    drawing = _seconds(lambda: [None for _ in data])
    both = _seconds(lambda: [_step(network, inputs, labels) for inputs, labels in data]) - drawing
    forward = _seconds(lambda: [_forward(network, inputs) for inputs, _ in data]) - drawing
    print(f"VGG16 for CIFAR-10, {data.images} images, batches of {BATCH}, {torch.get_num_threads()} threads\n")
    print(f"plain forward {forward:.1f} s, plain forward and backward {both:.1f} s\n")
    print("| metric | slicing | of it forward+backward | ratio |")
    print("|---|---|---|---|")
    for metric in METRICS:
        spent = _seconds(lambda m=metric: slice_model(model, data, SlicingConfig(metric=m))) - drawing
        print(f"| {metric} | {spent:.1f} s | {both:.1f} s | {spent / both:.2f}x |")


def _seconds(action) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _step(network: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    network.zero_grad()
    nn.functional.cross_entropy(network(inputs), labels).backward()


def _forward(network: nn.Module, inputs: Tensor) -> None:
    with torch.inference_mode():
        network(inputs)


if __name__ == "__main__":
    main()
