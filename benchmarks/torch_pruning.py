"""One's own network cut to the same size by us and by Torch-Pruning's pipeline: accuracy, time, latency.

    python -m benchmarks.torch_pruning ARCHITECTURE.json WEIGHTS.safetensors DATA --preprocess '{"scale": 0.00392157}'

Torch-Pruning's pipeline: gradients of the same images, GroupTaylorImportance (and GroupMagnitudeImportance, which needs
no data), MetaPruner over the whole network with its pruning ratio searched until as many parameters are gone.
Ours: a semantic slice by Taylor with `target_compression`. No one retrains.
"""

import copy
import time
from collections.abc import Callable

import torch
import torch_pruning
from torch import nn

from benchmarks.clock import seconds
from benchmarks.own_files import opened, parser_of
from neusemslice import SlicingConfig, evaluate, restructure, slice_model, trace
from neusemslice.data import Dataset
from neusemslice.profiling import count_flops, count_parameters

TARGETS = (0.1, 0.25, 0.5, 0.7)
STEPS = 12


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--per-category", type=int, default=100)
    arguments = parser.parse_args()
    with opened(arguments) as (network, shape, dataset):
        compare(network, shape, dataset, arguments.per_category)


def compare(network: nn.Module, shape: tuple[int, ...], dataset: Dataset, per_category: int) -> None:
    """One line for each method and size."""
    data = list(dataset.batches("train", 100, limit_per_category=per_category))
    test = dataset.batches("test", 250)
    model = trace(network, torch.zeros(1, *shape))
    print(f"the network itself: {evaluate(model, test).accuracy:.2%}, {count_parameters(network):,} parameters\n")
    print("| removed | method | accuracy | analysis and cut | FLOPs left | batch 1 | batch 64 |")
    print("|---|---|---|---|---|---|---|")
    for target in TARGETS:
        methods: dict[str, Callable[[], nn.Module]] = {
            "semantic, taylor": lambda t=target: _ours(model, data, t),
            "Torch-Pruning, taylor": lambda t=target: _theirs(network, shape, data, t, with_gradients=True),
            "Torch-Pruning, norm": lambda t=target: _theirs(network, shape, data, t, with_gradients=False),
        }
        for name, make in methods.items():
            started = time.perf_counter()
            smaller = make()
            spent = time.perf_counter() - started
            removed = 1 - count_parameters(smaller) / count_parameters(network)
            flops = count_flops(smaller, shape) / count_flops(network, shape)
            latency = [
                _latency(smaller, torch.zeros(batch, *shape)) / _latency(network, torch.zeros(batch, *shape))
                for batch in (1, 64)
            ]
            print(
                f"| {removed:.1%} | {name} | {evaluate(smaller, test).accuracy:.2%} | {spent:.1f} s | {flops:.0%} "
                f"| {latency[0]:.0%} | {latency[1]:.0%} |",
                flush=True,
            )


def _ours(model, data, target: float) -> nn.Module:
    return restructure(model, slice_model(model, data, SlicingConfig(target_compression=target))).model


def _theirs(network: nn.Module, shape: tuple[int, ...], data, target: float, *, with_gradients: bool) -> nn.Module:
    """The network pruned by Torch-Pruning; the ratio is bisected until the share of parameters is right."""
    whole = copy.deepcopy(network).requires_grad_()
    if with_gradients:
        for inputs, labels in data:
            nn.functional.cross_entropy(whole(inputs), labels).backward()
    gradients = [parameter.grad for parameter in whole.parameters()]
    low, high = 0.0, 1.0
    best = whole
    for _ in range(STEPS):
        ratio = (low + high) / 2
        candidate = copy.deepcopy(whole)
        for parameter, gradient in zip(candidate.parameters(), gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        kind = (
            torch_pruning.importance.GroupTaylorImportance
            if with_gradients
            else torch_pruning.importance.GroupMagnitudeImportance
        )
        classifier = [module for module in candidate.modules() if isinstance(module, nn.Linear)][-1]
        pruner = torch_pruning.pruner.MetaPruner(
            candidate,
            torch.zeros(1, *shape),
            importance=kind(),
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=[classifier],
        )
        pruner.step()
        if 1 - count_parameters(candidate) / count_parameters(network) < target:
            low = ratio
        else:
            high, best = ratio, candidate
    return best.eval()


def _latency(network: nn.Module, inputs: torch.Tensor) -> float:
    def run() -> None:
        with torch.inference_mode():
            network.eval()(inputs)

    return seconds(run, 9)


if __name__ == "__main__":
    main()
