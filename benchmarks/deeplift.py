"""DeepLIFT of all layers at once against captum, layer by layer, and against a plain forward and backward pass.

    python -m benchmarks.deeplift

captum 0.9 is timed as its user would call it: LayerDeepLift once for each sliceable layer, every sample with its own
target, on the canonical form (it refuses networks that use a module twice, such as torchvision's ResNets). It is timed
on a few evenly spread layers and scaled to all of them.
"""

import copy
import warnings
from collections.abc import Callable
from functools import partial

import torch
from captum.attr import LayerDeepLift
from torch import nn

from benchmarks.clock import seconds
from benchmarks.networks import resnet101, vgg16_cifar10
from neusemslice import trace
from neusemslice.contribution.deeplift import DeepLift

CASES = (("VGG16-BN", vgg16_cifar10, 32, 16, 13), ("ResNet-101", resnet101, 32, 16, 4))
"""Name, network, height and width, batch size, how many layers captum is timed on."""


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    print(
        "| network | batch | all layers, ours | captum, all layers | ratio | forward+backward, doubled batch | ratio |"
    )
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        print(row(*case), flush=True)


def row(name: str, make: Callable[[], nn.Module], size: int, batch: int, timed: int) -> str:
    """One network's line of the table."""
    inputs, targets = torch.randn(batch, 3, size, size), torch.arange(batch) % 10
    network = make()
    model = trace(network, inputs)
    lift = DeepLift(model)
    ours = seconds(lambda: lift.contributions(inputs, targets))
    plain = seconds(lambda: _forward_backward(network, torch.cat([inputs, inputs]), torch.cat([targets, targets])))
    layers = model.sliceable_layers
    spread = [layers[round(place)] for place in torch.linspace(0, len(layers) - 1, timed).tolist()]
    canonical = copy.deepcopy(model.graph_module).requires_grad_()
    spent = [seconds(partial(_captum, canonical, layer.name, inputs, targets), 1) for layer in spread]
    captum = sum(spent) / timed * len(layers)
    return (
        f"| {name} ({len(layers)} layers) | {batch} | {ours:.2f} s | {captum:.1f} s | {captum / ours:.1f}x "
        f"| {plain:.2f} s | {ours / plain:.2f}x |"
    )


def _captum(network: nn.Module, path: str, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LayerDeepLift(network, network.get_submodule(path)).attribute(inputs, torch.zeros_like(inputs), target=targets)


def _forward_backward(network: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """As in training: gradients of all parameters."""
    network.zero_grad()
    nn.functional.cross_entropy(network(inputs), targets).backward()


if __name__ == "__main__":
    main()
