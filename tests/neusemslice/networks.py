"""Small networks with all their numbers drawn at random, norms included."""

import torch
import torch.nn.functional as F  # noqa: N812 torch's own name for it
from torch import Tensor, nn


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of unit gain and norms that really move and scale, the same on every run."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
            if module.bias is not None:
                module.bias.data = torch.randn(module.bias.shape, generator=generator) * 0.2
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, middle in ((module.weight, 1.0), (module.bias, 0.0), (module.running_mean, 0.0)):
                tensor.data = middle + 0.3 * torch.randn(tensor.shape, generator=generator)
            module.running_var = 0.5 + torch.rand(module.running_var.shape, generator=generator)
    return network.eval()


def mlp() -> nn.Sequential:
    return randomised(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)))


def vgg_like(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Activation -> max pool, an overlapping pool, a norm behind a flatten; takes [2, 12, 12]."""
    return randomised(
        nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            activation(),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(6, 5, 3),
            activation(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.BatchNorm1d(20),
            nn.Dropout(0.5),
            nn.Linear(20, 8),
            activation(),
            nn.Linear(8, 3),
        )
    )


class Functional(nn.Module):
    """Functions where layers could stand, a module used twice, an in-place one, and softmax at the end; [2, 12, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"first": nn.Conv2d(2, 4, 3), "second": nn.Conv2d(4, 5, 3)})
        self.act = nn.ReLU(inplace=True)
        self.hidden = nn.Linear(45, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.act(self.body["first"](x)), 2, padding=1)
        x = self.act(self.body["second"](x)).relu()
        x = F.dropout(F.max_pool2d(x, 2, stride=1), 0.25, training=self.training)
        x = self.hidden(x.view(x.size(0), -1).contiguous())
        return torch.log_softmax(self.out(F.leaky_relu(x, 0.2)), dim=1)


def functional() -> nn.Module:
    return randomised(Functional())
