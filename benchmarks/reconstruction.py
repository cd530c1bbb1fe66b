"""How far reconstruction goes on one's own network: accuracy against compression, and against calibration images.

    python -m benchmarks.reconstruction ARCHITECTURE.json WEIGHTS.safetensors DATA --preprocess '{"scale": 0.00392157}'

Each slice is cut to the same shares of the parameters and reconstructed at each level from `--images` unlabelled
training images a category; accuracy is that of the test split's first `--test` images a category. Seconds are of the
processor, for the cut at the last level. Progress goes to stderr.
"""

import argparse
import sys
import time

import torch

from benchmarks.own_files import opened, parser_of
from neusemslice import SliceableModel, SlicingConfig, evaluate, restructure, trace
from neusemslice.batches import Batches
from neusemslice.data import Dataset
from neusemslice.profiling import count_parameters
from neusemslice.restructuring import parameters_after
from neusemslice.slicing import ModelSlice, slice_many
from neusemslice.training import as_samples, distillation, train
from neusemslice.training_config import TrainingConfig

STEPS = 20


def main() -> None:
    """Print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--strategies", default="semantic,categorywise,global,random")
    parser.add_argument("--metrics", default="taylor")
    parser.add_argument("--compressions", default="0.43,0.75,0.92")
    parser.add_argument("--levels", default="none,bias,norms,least_squares")
    parser.add_argument("--images", default="40", help="For calibration, of each category; a list adds a table.")
    parser.add_argument("--analysed", type=int, default=100, help="Images of each category that are analysed.")
    parser.add_argument("--test", type=int, default=100, help="Images of each category.")
    parser.add_argument("--epochs", type=int, default=0, help="Of distillation from the network itself; adds a table.")
    parser.add_argument("--trained", type=int, default=500, help="Images of each category that are trained on.")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with opened(arguments) as (network, shape, dataset):
        _tables(trace(network, torch.zeros(1, *shape)), dataset, arguments)


def _tables(model: SliceableModel, dataset: Dataset, arguments: argparse.Namespace) -> None:
    test = dataset.batches("test", 250, limit_per_category=arguments.test)
    images = [int(number) for number in arguments.images.split(",")]
    compressions = [float(share) for share in arguments.compressions.split(",")]
    levels = arguments.levels.split(",")
    whole = evaluate(model, test)
    print(f"The network itself: {whole.accuracy:.1%} on {whole.samples:,} test images.\n")
    slices = _slices(model, dataset, arguments, compressions)
    print(f"| strategy | metric | removed | {' | '.join(levels)} | seconds |")
    print("|---|---|---|" + "---|" * (len(levels) + 1), flush=True)
    for slice_ in slices:
        cells, took, removed = [], 0.0, 0.0
        for level in levels:
            _say(f"{slice_.config.strategy} {slice_.config.metric} cut at {slice_.config.cut:.5f}: {level}")
            accuracy, removed, took = _reconstructed(model, slice_, level, dataset, images[0], test)
            cells.append(f"{accuracy:.1%}")
        metric = "-" if slice_.config.strategy == "random" else slice_.config.metric
        print(f"| {slice_.config.strategy} | {metric} | {removed:.1%} | {' | '.join(cells)} | {took:.1f} |", flush=True)
    if len(images) > 1:
        counted = [f"{number * model.categories:,}" for number in images]
        print(f"\n| strategy | removed | {' | '.join(counted)} |")
        print("|---|---|" + "---|" * len(images), flush=True)
        for slice_ in slices:
            cells = []
            for number in images:
                _say(f"{slice_.config.strategy} cut at {slice_.config.cut:.5f}, {number} images a category")
                accuracy, removed, took = _reconstructed(model, slice_, levels[-1], dataset, number, test)
                cells.append(f"{accuracy:.1%} ({took:.0f} s)")
            print(f"| {slice_.config.strategy} | {removed:.1%} | {' | '.join(cells)} |", flush=True)
    if arguments.epochs:
        _trained(model, slices, dataset, arguments)


def _trained(model: SliceableModel, slices: list[ModelSlice], dataset: Dataset, arguments: argparse.Namespace) -> None:
    """Distillation of what the cut left, and of what reconstruction made of it."""
    test = dataset.batches("test", 250, limit_per_category=arguments.test)
    images = int(arguments.images.split(",")[0])
    calibration = dataset.batches("train", 100, limit_per_category=images)
    samples = as_samples(dataset.batches("train", 100, limit_per_category=arguments.trained), model)
    config = TrainingConfig(epochs=arguments.epochs, schedule="cosine")
    print(f"\n| strategy | removed | cut alone, distilled {config.epochs} epochs | least squares | and distilled |")
    print("|---|---|---|---|---|", flush=True)
    for slice_ in slices:
        cut = restructure(model, slice_)
        fitted = restructure(model, slice_, reconstruct="least_squares", calibration=calibration)
        before = evaluate(fitted.model, test).accuracy
        for result in (cut, fitted):
            _say(f"{slice_.config.strategy} cut at {slice_.config.cut:.5f}, distilled")
            train(result.model, samples, config, loss=distillation(model.graph_module))
        after = [evaluate(result.model, test).accuracy for result in (cut, fitted)]
        print(
            f"| {slice_.config.strategy} | {cut.report.compression_rate:.1%} | {after[0]:.1%} | {before:.1%} "
            f"| {after[1]:.1%} |",
            flush=True,
        )


def _slices(
    model: SliceableModel, dataset: Dataset, arguments: argparse.Namespace, compressions: list[float]
) -> list[ModelSlice]:
    """One for each strategy, metric (a random choice has none) and compression, from one analysis."""
    data = dataset.batches("train", 100, limit_per_category=arguments.analysed)
    configs = [
        SlicingConfig(strategy=strategy, metric=metric)
        for strategy in arguments.strategies.split(",")
        for metric in (["avg"] if strategy == "random" else arguments.metrics.split(","))
    ]
    _say(f"{len(configs)} analyses")
    return [_cut_to(model, found, share) for found in slice_many(model, data, configs) for share in compressions]


def _cut_to(model: SliceableModel, slice_: ModelSlice, share: float) -> ModelSlice:
    """The slice at the largest cut that removes this share of the parameters."""
    whole = count_parameters(model.graph_module)
    low, high = 1e-6, 1.0
    for _ in range(STEPS):
        cut = (low + high) / 2
        if 1 - parameters_after(model, slice_.at(cut).merged()) / whole < share:
            high = cut
        else:
            low = cut
    return slice_.at(low)


def _reconstructed(
    model: SliceableModel, slice_: ModelSlice, level: str, dataset: Dataset, images: int, test: Batches
) -> tuple[float, float, float]:
    """Accuracy, share of the parameters removed, and processor seconds (of the whole cut)."""
    calibration = None if level == "none" else dataset.batches("train", 100, limit_per_category=images)
    started = time.process_time()
    result = restructure(model, slice_, reconstruct=level, calibration=calibration)
    took = time.process_time() - started
    return evaluate(result.model, test).accuracy or 0.0, result.report.compression_rate, took


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
