"""Ridge regression and convolutions as rows, written out naively in float64."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


def ridge(inputs: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight and bias by `torch.linalg.lstsq`, with rows for the penalty, which is relative to the mean variance."""
    inputs, targets = inputs.double(), targets.double()
    middle, level = inputs.mean(0), targets.mean(0)
    centred = inputs - middle
    strength = (penalty * centred.square().sum() / inputs.shape[1]).sqrt()
    rows = torch.cat([centred, strength * torch.eye(inputs.shape[1], dtype=torch.float64)])
    goals = torch.cat([targets - level, torch.zeros(inputs.shape[1], targets.shape[1], dtype=torch.float64)])
    weight = torch.linalg.lstsq(rows, goals).solution.T
    return weight, level - weight @ middle


def windows(layer: nn.Module, value: Tensor, group: int) -> Tensor:
    """Rows of what one group of a zero-padded convolution reads: samples x positions, in order, one by one."""
    spread = [side for size in reversed(layer.padding) for side in (size, size)]
    padded = pad(value, spread)
    channels = value.shape[1] // layer.groups
    padded = padded[:, group * channels : (group + 1) * channels]
    counts = [
        (size - reach * (kernel - 1) - 1) // step + 1
        for size, reach, kernel, step in zip(
            padded.shape[2:], layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    ]
    rows = []
    for sample in padded:
        for position in itertools.product(*map(range, counts)):
            window = sample
            for dim, place in enumerate(position, start=1):
                reach, step = layer.dilation[dim - 1], layer.stride[dim - 1]
                taken = [place * step + reach * offset for offset in range(layer.kernel_size[dim - 1])]
                window = window.index_select(dim, torch.tensor(taken))
            rows.append(window.flatten())
    return torch.stack(rows)
