"""One's own network and data, as the benchmarks that are about them take them from the command line."""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from neusemslice.data import Dataset, ImportLimits, Preprocess, import_dataset, open_dataset
from neusemslice.weights import load_network


def parser_of(about: str | None) -> argparse.ArgumentParser:
    """A parser that asks for the network and the data; the benchmark adds what it wants to know besides."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("architecture", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--preprocess", type=json.loads, default={})
    return parser


@contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[tuple[nn.Module, tuple[int, ...], Dataset]]:
    """The network, the shape of its samples, and the data."""
    spec = json.loads(arguments.architecture.read_text())
    network = load_network(spec, arguments.weights)
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "data.safetensors"
        preprocess = Preprocess.from_dict(arguments.preprocess)
        import_dataset(arguments.data, stored, preprocess=preprocess, limits=ImportLimits())
        yield network, tuple(spec["input_shape"]), open_dataset(stored)
