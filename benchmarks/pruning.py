"""The paper's RQ2 on one's own network: iterative weight pruning by four methods, sliced and whole.

    python -m benchmarks.pruning ARCHITECTURE.json WEIGHTS.safetensors DATA --preprocess '{"scale": 0.00392157}'

No retraining, as in the paper, unless `--epochs` of fine-tuning after each iteration are asked for. Pruning ends when
the accuracy on the test images falls more than the tolerance below the network's own, whatever a slice has lost before.
For each tolerance: NI iterations, CR the share of the original parameters that are gone or zero, MA the accuracy there.
`--compare` names the paper's setting, whose rows are printed beside; with `--at-paper` a network is measured only after
as many iterations as the paper's row has.
"""

import argparse
from dataclasses import dataclass, replace

import torch

from benchmarks.own_files import opened, parser_of
from neusemslice import (
    PruningConfig,
    SliceableModel,
    SlicingConfig,
    TrainingConfig,
    evaluate,
    prune_weights,
    restructure,
    slice_model,
    trace,
)
from neusemslice.data import Dataset
from neusemslice.profiling import count_parameters
from neusemslice.pruning import PruningIteration

METHODS = ("lamp", "global", "uniform+", "erk")
STRATEGIES = ("semantic", "global", "categorywise")
PAPER = {
    "mlp-mnist": {
        ("lamp", "none"): (52.17, 7, 98.26),
        ("lamp", "global"): (48.27, 5, 98.26),
        ("lamp", "categorywise"): (50.82, 6, 98.30),
        ("lamp", "semantic"): (53.05, 5, 98.32),
        ("global", "none"): (40.95, 5, 98.31),
        ("global", "global"): (36.13, 3, 98.33),
        ("global", "categorywise"): (39.28, 4, 98.31),
        ("global", "semantic"): (42.04, 3, 98.37),
        ("uniform+", "none"): (40.95, 5, 98.34),
        ("uniform+", "global"): (36.13, 3, 98.29),
        ("uniform+", "categorywise"): (39.28, 4, 98.28),
        ("uniform+", "semantic"): (42.04, 3, 98.36),
        ("erk", "none"): (34.39, 4, 98.30),
        ("erk", "global"): (36.13, 3, 98.31),
        ("erk", "categorywise"): (32.53, 3, 98.34),
        ("erk", "semantic"): (42.04, 3, 98.33),
    },
    "alexnet-cifar10": {
        ("lamp", "none"): (30.17, 7, 89.49),
        ("lamp", "global"): (33.85, 6, 87.87),
        ("lamp", "categorywise"): (33.95, 6, 82.12),
        ("lamp", "semantic"): (34.88, 6, 89.52),
        ("global", "none"): (60.28, 18, 89.44),
        ("global", "global"): (62.37, 17, 87.75),
        ("global", "categorywise"): (62.43, 17, 81.99),
        ("global", "semantic"): (62.96, 17, 89.44),
        ("uniform+", "none"): (55.99, 16, 88.59),
        ("uniform+", "global"): (58.31, 15, 87.08),
        ("uniform+", "categorywise"): (58.37, 15, 81.60),
        ("uniform+", "semantic"): (58.96, 15, 88.68),
        ("erk", "none"): (55.99, 16, 89.37),
        ("erk", "global"): (58.31, 15, 87.66),
        ("erk", "categorywise"): (58.37, 15, 82.15),
        ("erk", "semantic"): (58.96, 15, 89.41),
    },
}
"""Table 5: CR in %, NI, MA in %."""


@dataclass(frozen=True)
class Start:
    """A network that pruning begins with."""

    strategy: str
    reconstruct: str
    model: SliceableModel
    accuracy: float


def main() -> None:
    """Print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--amount", type=float, default=0.1)
    parser.add_argument("--sliced", type=float, default=0.2049, help="share of the parameters that the slices remove")
    parser.add_argument("--metric", default="taylor")
    parser.add_argument("--per-category", type=int, default=100, help="train images that slices are made from")
    parser.add_argument("--test-per-category", type=int, default=None)
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.001, 0.003, 0.01])
    parser.add_argument("--reconstruct", nargs="+", default=["none", "least_squares"])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--compare", choices=PAPER, default=None)
    parser.add_argument("--at-paper", action="store_true")
    parser.add_argument("--epochs", type=int, default=0, help="of fine-tuning after each iteration")
    parser.add_argument("--strategies", nargs="+", default=("none", *STRATEGIES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with opened(arguments) as (network, shape, dataset):
        compare(trace(network, torch.zeros(1, *shape)), dataset, arguments)


def compare(model: SliceableModel, dataset: Dataset, arguments: argparse.Namespace) -> None:
    """A table for each tolerance."""
    test = list(dataset.batches("test", 250, limit_per_category=arguments.test_per_category))
    accuracy = evaluate(model, test).accuracy
    original = count_parameters(model.graph_module)
    print(f"the network itself: {accuracy:.2%} on {sum(len(y) for _, y in test):,} images, {original:,} parameters\n")
    if arguments.at_paper:
        at_paper(starts(model, dataset, test, arguments), test, accuracy, original, arguments)
        return
    curves = {}
    for start in starts(model, dataset, test, arguments):
        print(f"start: {describe(start)}: {start.accuracy:.2%}", flush=True)
        for method in arguments.methods:
            tuning = TrainingConfig(epochs=arguments.epochs) if arguments.epochs else None
            config = PruningConfig(method=method, amount=arguments.amount, iterations=1, fine_tuning=tuning)
            train = dataset.batches("train", 256)
            curve = pruned(start, config, train, test, accuracy - max(arguments.tolerances), original)
            curves[method, start.strategy, start.reconstruct] = curve
            steps = " ".join(f"{record.accuracy:.2%}" for record in curve)
            print(f"  {method}: {steps}", flush=True)
    for tolerance in arguments.tolerances:
        table(curves, accuracy, tolerance, PAPER.get(arguments.compare, {}))


def at_paper(starts, test: list, accuracy: float, original: int, arguments: argparse.Namespace) -> None:
    """Each row of the paper, and what we lose after the same number of iterations."""
    print("| method | slice | reconstruct | NI | CR | start | MA | lost | paper: CR | MA |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for start in starts:
        for method in arguments.methods:
            rate, iterations, theirs = PAPER[arguments.compare][method, start.strategy]
            config = PruningConfig(method=method, amount=arguments.amount, iterations=iterations)
            found = prune_weights(start.model, config, parameters_original=original)
            now = evaluate(found.model, test).accuracy
            print(
                f"| {method} | {start.strategy} | {start.reconstruct} | {iterations} "
                f"| {found.report.final.compression_rate:.2%} | {start.accuracy:.2%} | {now:.2%} "
                f"| {100 * (accuracy - now):.2f} | {rate:.2f}% | {theirs:.2f}% |",
                flush=True,
            )


def starts(model: SliceableModel, dataset: Dataset, test: list, arguments: argparse.Namespace):
    """The network itself, then each strategy's slice, cut to size, with each reconstruction."""
    if "none" in arguments.strategies:
        yield Start("none", "", model, evaluate(model, test).accuracy)
    data = list(dataset.batches("train", 100, limit_per_category=arguments.per_category))
    for strategy in [name for name in STRATEGIES if name in arguments.strategies]:
        config = SlicingConfig(strategy=strategy, metric=arguments.metric, target_compression=arguments.sliced)
        found = slice_model(model, data, config)
        for level in arguments.reconstruct:
            given = {} if level == "none" else {"reconstruct": level, "calibration": data}
            smaller = restructure(model, found, **given)
            traced = trace(smaller.model, torch.zeros(1, *model.input_shape))
            yield Start(strategy, level, traced, evaluate(traced, test).accuracy)


def pruned(
    start: Start, config: PruningConfig, train, test: list, floor: float, original: int
) -> tuple[PruningIteration, ...]:
    """The records down to the floor; the start alone if that is below it already."""
    drop = max(0.0, start.accuracy - floor)
    stopping = replace(config, iterations=None, max_accuracy_drop=drop)
    report = prune_weights(
        start.model, stopping, train=train, validation=test, test=test, parameters_original=original
    ).report
    return report.iterations if start.accuracy >= floor else report.iterations[:1]


def within(curve: tuple[PruningIteration, ...], floor: float) -> PruningIteration | None:
    """The last record before the first that is below the floor."""
    last = None
    for record in curve:
        if record.accuracy < floor - 1e-9:
            break
        last = record
    return last


def table(curves: dict, accuracy: float, tolerance: float, paper: dict) -> None:
    print(f"\nTolerance {tolerance:.1%} of {accuracy:.2%}\n")
    print("| method | slice | reconstruct | start | NI | CR | MA | paper: NI | CR | MA |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (method, strategy, level), curve in sorted(curves.items(), key=lambda item: METHODS.index(item[0][0])):
        found = within(curve, accuracy - tolerance)
        ours = f"{found.iteration} | {found.compression_rate:.2%} | {found.accuracy:.2%}" if found else "- | - | -"
        theirs = paper.get((method, strategy))
        beside = f"{theirs[1]} | {theirs[0]:.2f}% | {theirs[2]:.2f}%" if theirs else "| |"
        print(f"| {method} | {strategy} | {level} | {curve[0].accuracy:.2%} | {ours} | {beside} |")


def describe(start: Start) -> str:
    removed = f"{count_parameters(start.model.graph_module):,} parameters"
    return f"{start.strategy} {start.reconstruct}, {removed}"


if __name__ == "__main__":
    main()
