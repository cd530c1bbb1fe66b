"""Small networks of several branches, with all their numbers drawn at random."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 torch's own name for it
from torch import Tensor, nn

from tests.neusemslice.networks import randomised


class Residual(nn.Module):
    """Two blocks on one stream of 6 channels, the second of bottleneck form; [2, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.first = nn.Sequential(
            nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 1), nn.BatchNorm2d(6)
        )
        self.second = nn.Sequential(nn.Conv2d(6, 4, 1), nn.SiLU(), nn.Conv2d(4, 6, 3, padding=1))
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.first(x)
        out += x
        x = self.relu(out)
        x = self.relu(torch.add(self.second(x), x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class MobileBlock(nn.Module):
    """Expansion, depthwise convolution, squeeze and excitation, projection, and the sum; [2, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.expand = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Hardswish())
        self.squeeze, self.excite = nn.Linear(8, 3), nn.Linear(3, 8)
        self.project = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))
        y = gate.view(gate.size(0), 8, 1, 1) * y
        return self.fc((x + self.project(y)).mean([2, 3]))


class Dense(nn.Module):
    """Each layer reads all before it through a norm of its own; [2, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(7), nn.BatchNorm2d(10)])
        self.convs = nn.ModuleList([nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(7, 3, 1), nn.Conv2d(10, 5, 1)])
        self.fc = nn.Linear(5 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.fc(F.max_pool2d(features[-1], 2).permute(0, 2, 3, 1).flatten(1))


class Grouped(nn.Module):
    """A grouped convolution in a residual block, and a depthwise one that doubles its channels; [2, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.grouped = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 9, 3, padding=1, groups=3)
        self.back = nn.Conv2d(9, 6, 1)
        self.doubled = nn.Conv2d(6, 12, 3, groups=6)
        self.fc = nn.Linear(12 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.reduce(x))
        x = self.back(F.gelu(self.grouped(x))) + x
        return self.fc(torch.flatten(F.leaky_relu(self.doubled(x)), 1))


class Tokens(nn.Module):
    """A transformer block with class token, position embedding and layer scale; [2, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(2, 6, 4, stride=4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 5, 6))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norms = nn.ModuleList([nn.LayerNorm(6), nn.LayerNorm(6), nn.LayerNorm(6)])
        self.mlp = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Dropout(0.1), nn.Linear(10, 6))
        self.layer_scale = nn.Parameter(0.5 + torch.rand(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.embed(x).reshape(n, 6, 4).permute(0, 2, 1)
        x = torch.cat([self.token.expand(n, -1, -1), x], dim=1) + self.positions
        y = self.norms[0](x)
        y, _ = self.attention(y, y, y, need_weights=False)
        x = x + y
        x = x + self.layer_scale * self.mlp(self.norms[1](x))
        return self.head(self.norms[2](x)[:, 0])


class Mixed(nn.Module):
    """Group norm, a softmax over channels, a chunked gate and a learned shift; 1-d; [2, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.gated, self.wide = nn.Conv1d(8, 8, 1), nn.Conv1d(4, 6, 3)
        self.shift = nn.Parameter(torch.randn(6, 1))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.gated(F.relu(self.norm(self.conv(x)))).chunk(2, dim=1)
        x = self.wide(one * torch.softmax(other, 1))
        return self.out(torch.tanh(x + self.shift).transpose(1, 2).mean(1))


GRAPHS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (2, 8, 8)),
    "mobile": (MobileBlock, (2, 8, 8)),
    "dense": (Dense, (2, 8, 8)),
    "grouped": (Grouped, (2, 8, 8)),
    "tokens": (Tokens, (2, 8, 8)),
    "mixed": (Mixed, (2, 12)),
}
"""Name -> (what makes the network, shape of a sample)."""


def graph(name: str) -> nn.Module:
    """That network with its numbers drawn, the same on every run."""
    torch.manual_seed(0)
    return randomised(GRAPHS[name][0]())
