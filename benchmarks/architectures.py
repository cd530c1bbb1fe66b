"""The support matrix: what can be sliced in each architecture, with the proof that it is exact.

    python -m benchmarks.architectures > docs/architectures.md

For every network: traced, scored with DeepLIFT and Taylor, sliced at theta 0.9 on drawn images, cut in both ways, the
logits of the masked and of the restructured network compared, and DeepLIFT's completeness at six cuts of the graph.
Weights are drawn: what is proven does not depend on them.
"""

import time
from collections.abc import Callable
from itertools import pairwise

import torch
import torchvision
from torch import nn

from benchmarks.clock import seconds
from benchmarks.networks import standing_in, vgg16_cifar10
from neusemslice import SliceableModel, SlicingConfig, restructure, slice_model, trace
from tests.reference.cuts import completeness_error

models = torchvision.models
CATEGORIES, SAMPLES = 4, 8


def torchvision_network(name: str, **kwargs: object) -> Callable[[], nn.Module]:
    return lambda: standing_in(getattr(models, name)(num_classes=CATEGORIES, **kwargs))


def mlp() -> nn.Module:
    sizes = (784, 512, 256, CATEGORIES)
    layers = [nn.Flatten()]
    for wide, narrow in pairwise(sizes):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return standing_in(nn.Sequential(*layers[:-1]))


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 784-512-256": (mlp, (1, 28, 28)),
    "AlexNet": (torchvision_network("alexnet"), (3, 64, 64)),
    "VGG16": (torchvision_network("vgg16"), (3, 32, 32)),
    "VGG16-BN, CIFAR-10": (vgg16_cifar10, (3, 32, 32)),
    "VGG19": (torchvision_network("vgg19"), (3, 32, 32)),
    "VGG19-BN": (torchvision_network("vgg19_bn"), (3, 32, 32)),
    "ResNet-18": (torchvision_network("resnet18"), (3, 64, 64)),
    "ResNet-50": (torchvision_network("resnet50"), (3, 64, 64)),
    "ResNet-101": (torchvision_network("resnet101"), (3, 64, 64)),
    "ResNeXt-50 32x4d": (torchvision_network("resnext50_32x4d"), (3, 64, 64)),
    "MobileNet V2": (torchvision_network("mobilenet_v2"), (3, 64, 64)),
    "MobileNet V3 small": (torchvision_network("mobilenet_v3_small"), (3, 64, 64)),
    "MobileNet V3 large": (torchvision_network("mobilenet_v3_large"), (3, 64, 64)),
    "DenseNet-121": (torchvision_network("densenet121"), (3, 64, 64)),
    "EfficientNet-B0": (torchvision_network("efficientnet_b0"), (3, 64, 64)),
    "GoogLeNet": (torchvision_network("googlenet", init_weights=False), (3, 64, 64)),
    "SqueezeNet 1.1": (torchvision_network("squeezenet1_1"), (3, 64, 64)),
    "MNASNet 1.0": (torchvision_network("mnasnet1_0"), (3, 64, 64)),
    "ShuffleNet V2": (torchvision_network("shufflenet_v2_x1_0"), (3, 64, 64)),
    "ConvNeXt-tiny": (torchvision_network("convnext_tiny"), (3, 64, 64)),
    "ViT-B/16": (torchvision_network("vit_b_16", image_size=64), (3, 64, 64)),
}
WHOLE = {
    "ShuffleNet V2": "channels that are shuffled between branches",
    "ConvNeXt-tiny": "the residual stream and its depthwise convolutions, which LayerNorm mixes",
    "ViT-B/16": "the residual stream, which LayerNorm mixes; attention heads and the MLPs' hidden neurons are sliced",
}


def main() -> None:
    """Print the page."""
    torch.manual_seed(0)
    print(PREFACE)
    print("| architecture | layers sliced | neurons | coupled sets | cut: union | cut: scatter | completeness | s |")
    print("|---|---|---|---|---|---|---|---|")
    speed = []
    for name, (make, shape) in ARCHITECTURES.items():
        started = time.perf_counter()
        inputs, labels = torch.randn(CATEGORIES * SAMPLES, *shape), torch.arange(CATEGORIES * SAMPLES) % CATEGORIES
        model = trace(make(), inputs[:2])
        labels %= model.categories
        data = [(inputs, labels)] if model.categories == CATEGORIES else _covering(model, shape)
        slices = [slice_model(model, data, SlicingConfig(metric=m, threshold=0.9)) for m in ("deeplift", "taylor")]
        ways = {branches: restructure(model, slices[1], branches=branches) for branches in ("union", "scatter")}
        nodes = len(model.graph_module.graph.nodes)
        errors = [
            completeness_error(model, inputs[:4], labels[:4], round(cut))
            for cut in torch.linspace(0, nodes - 3, 6).tolist()
        ]
        cells = [
            f"-{way.report.compression_rate:.0%} params, differs {way.report.max_relative_difference:.0e}"
            for way in ways.values()
        ]
        if not model.coupled:
            cells[1] = "same"
        else:
            speed.append((name, model, ways))
        neurons = sum(layer.neurons for layer in model.sliceable_layers)
        print(
            f"| {name} | {len(model.sliceable_layers)} | {neurons:,} | {len(model.coupled)} | {cells[0]} | {cells[1]} "
            f"| {max(errors):.0e} | {time.perf_counter() - started:.0f} |",
            flush=True,
        )
    print("\nWhat stays whole, apart from the classifier:\n")
    for name, reason in WHOLE.items():
        print(f"- {name}: {reason}.")
    print(SECOND)
    print("| architecture | batch | whole | union | scatter |")
    print("|---|---|---|---|---|")
    for name, model, ways in speed:
        for batch in (1, 16):
            inputs = torch.randn(batch, *model.input_shape)
            whole, *cut = (
                _latency(network, inputs) for network in (model.graph_module, *(way.model for way in ways.values()))
            )
            cells = [
                f"{time_ * 1000:.1f} ms ({way.report.flops_after / way.report.flops_before:.0%} of the FLOPs)"
                for time_, way in zip(cut, ways.values(), strict=True)
            ]
            print(f"| {name} | {batch} | {whole * 1000:.1f} ms | {cells[0]} | {cells[1]} |", flush=True)


def _covering(model: SliceableModel, shape: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    labels = torch.arange(model.categories * SAMPLES) % model.categories
    return [(torch.randn(len(labels), *shape), labels)]


def _latency(network: nn.Module, inputs: torch.Tensor) -> float:
    def run() -> None:
        with torch.inference_mode():
            network.eval()(inputs)

    return seconds(run, 9)


PREFACE = """# Architectures

This page is written by `python -m benchmarks.architectures`, which runs what it states.

A network is supported if it is a graph of convolutions (1d to 3d, grouped, depthwise), linear layers, batch, layer and
group norms, elementwise activations, pooling, flatten, sums, products (gates), concatenations, self-attention and moves
of values (permute, reshape, chunk, select), as layers or as functions. Anything else is refused by name when the
network is traced. Where neurons cannot be removed exactly (what a LayerNorm over channels or an attention reads, what a
reshape or a shuffle mixes), their layers stay whole and are not listed as sliceable.

*Coupled sets*: layers whose outputs are added or multiplied, so that their neurons go together. `union` removes a
neuron when no layer of its set keeps it. `scatter` also removes what a single branch does not keep, and puts the rest
of the branch back among zeros before the sum. *Differs*: largest difference between the logits of the masked and the
restructured network, relative to the largest logit, float32. *Completeness*: largest error, over six cuts of the graph,
of the DeepLIFT contributions' sum against the change of the logit, relative to the largest logit, float32.
"""
SECOND = """
## Union or scatter

Median latency of the networks above, theta 0.9, Taylor, one thread. `scatter` is smaller everywhere. It is faster on
ResNets, whose branches are thick, and slower on the mobile networks, where copying a branch into its zeros costs more
than its few channels save: hence `union` is the default. Latency falls less than the FLOPs do: norms, activations and
depthwise convolutions cost memory traffic, not FLOPs, and thin convolutions use the processor badly.
"""

if __name__ == "__main__":
    main()
