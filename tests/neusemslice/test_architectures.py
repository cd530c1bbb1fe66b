"""The networks people have: traced, scored, sliced and cut, complete at cuts and written to a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck

from neusemslice import SlicingConfig, load_checkpoint, restructure, slice_model, trace
from tests.neusemslice.networks import randomised
from tests.reference.cuts import completeness_error

models = torchvision.models


def small_alexnet() -> nn.Module:
    network = models.alexnet(num_classes=3)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    for place, sizes in ((1, (256, 32)), (4, (32, 16)), (6, (16, 3))):
        network.classifier[place] = nn.Linear(*sizes)
    return network


def small_vgg() -> nn.Module:
    network = models.vgg19_bn(num_classes=3)
    network.avgpool, network.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 3)
    return network


def small_vit() -> nn.Module:
    return models.VisionTransformer(32, 8, 2, 2, hidden_dim=16, mlp_dim=32, num_classes=3)


def small_convnext() -> nn.Module:
    settings = [models.convnext.CNBlockConfig(8, 16, 2), models.convnext.CNBlockConfig(16, None, 1)]
    return models.ConvNeXt(settings, num_classes=3)


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "alexnet": (small_alexnet, 64),
    "vgg19_bn": (small_vgg, 32),
    "resnet18": (lambda: models.resnet18(num_classes=3), 32),
    "resnet101, narrow": (lambda: models.ResNet(Bottleneck, [3, 4, 23, 3], 3, width_per_group=4), 32),
    "resnext, narrow": (lambda: models.ResNet(Bottleneck, [1, 2, 1, 1], 3, groups=8, width_per_group=4), 32),
    "mobilenet_v2": (lambda: models.mobilenet_v2(num_classes=3), 32),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(num_classes=3), 32),
    "densenet, shallow": (lambda: models.DenseNet(8, (2, 3, 2), 8, num_classes=3), 32),
    "efficientnet_b0": (lambda: models.efficientnet_b0(num_classes=3), 32),
    "googlenet": (lambda: models.googlenet(num_classes=3, init_weights=False, aux_logits=True), 32),
    "convnext, narrow": (small_convnext, 32),
    "vit, narrow": (small_vit, 32),
    "shufflenet_v2_x0_5": (lambda: models.shufflenet_v2_x0_5(num_classes=3), 32),
    "squeezenet1_1": (lambda: models.squeezenet1_1(num_classes=3), 32),
}
PARTLY_FIXED = {"convnext, narrow", "vit, narrow", "shufflenet_v2_x0_5"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_from_trace_to_checkpoint(name: str, tmp_path: Path) -> None:
    make, size = ARCHITECTURES[name]
    torch.manual_seed(0)
    network = randomised(make())
    inputs, labels = torch.randn(18, 3, size, size), torch.arange(18) % 3
    model = trace(network, inputs[:2])
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), network(inputs), rtol=1e-5, atol=1e-5)
    if name not in PARTLY_FIXED:
        sliceable = {layer.name for layer in model.sliceable_layers}
        whole = model.couplings.neurons.keys() - sliceable - model.couplings.gates
        assert [len(model.couplings.neurons[path]) for path in whole] == [3]  # the classifier alone
    slice_ = slice_model(model, [(inputs, labels)], SlicingConfig(threshold=0.8))
    result = restructure(model, slice_)
    assert result.report.parameters_after < result.report.parameters_before
    result.save(tmp_path / "small.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "small.safetensors")(inputs), result.model(inputs))
    nodes = len(model.graph_module.graph.nodes)
    for cut in (0, nodes // 3, nodes // 2, nodes - 3):
        assert completeness_error(model, inputs[:4], labels[:4], cut) < 1e-5
