"""Networks of the benchmarks, untrained: what is timed does not depend on the weights."""

import torch
import torchvision
from torch import nn


def standing_in(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of unit gain and norms that scale and move, so that a network of any depth has signal everywhere."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight.data.normal_(0, (2 / layer.weight[0].numel()) ** 0.5, generator=generator)
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.normal_(1, 0.2, generator=generator)
            layer.bias.data.normal_(0, 0.2, generator=generator)
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def vgg16_cifar10() -> nn.Module:
    """The paper's VGG16: 13 convolutions with norms and one linear layer, 14,728,266 parameters; [3, 32, 32]."""
    network = torchvision.models.vgg16_bn(num_classes=10)
    network.avgpool, network.classifier = nn.Identity(), nn.Linear(512, 10)
    return standing_in(network)


def resnet101() -> nn.Module:
    return standing_in(torchvision.models.resnet101(num_classes=10))
