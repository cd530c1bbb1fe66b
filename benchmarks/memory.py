"""Peak memory of a slicing: it does not grow with the dataset.

    python -m benchmarks.memory

Each figure is the largest resident size of a fresh process, torch and the network included.
"""

import argparse
import resource
import subprocess
import sys

import torch

from benchmarks.networks import resnet101, vgg16_cifar10
from benchmarks.slicing import Images
from neusemslice import SlicingConfig, slice_model, trace

CASES = (
    ("VGG16-CIFAR10", "taylor", 2_000, 32),
    ("VGG16-CIFAR10", "taylor", 20_000, 32),
    ("VGG16-CIFAR10", "deeplift", 2_000, 32),
    ("ResNet-101", "taylor", 100, 224),
    ("ResNet-101", "deeplift", 100, 224),
)
NETWORKS = {"VGG16-CIFAR10": vgg16_cifar10, "ResNet-101": resnet101}


def main() -> None:
    """Print the table, each row from a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=int)
    case = parser.parse_args().case
    if case is not None:
        measure(*CASES[case])
        return
    print("| network | metric | images | pixels | peak |")
    print("|---|---|---|---|---|")
    for number, (name, metric, images, size) in enumerate(CASES):
        command = [sys.executable, "-m", "benchmarks.memory", "--case", str(number)]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"| {name} | {metric} | {images} | {size} x {size} | {peak:.2f} GiB |", flush=True)


def measure(name: str, metric: str, images: int, size: int) -> None:
    """Slice, and print this process's peak in GiB."""
    model = trace(NETWORKS[name](), torch.zeros(1, 3, size, size))
    config = SlicingConfig(metric=metric, samples_per_category=64)
    slice_model(model, Images(images, size), config)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


if __name__ == "__main__":
    main()
