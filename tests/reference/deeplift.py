"""DeepLIFT's Rescale rule for a stack of layers, spelled out: one sample, dense matrices, no gradient tricks."""

import torch
from torch import Tensor, nn


def contributions(layers: nn.Sequential, cut: int, sample: Tensor, target: int) -> Tensor:
    """Contribution of each value after `layers[cut]` to the target logit, baseline zeros; float64.

    Multipliers are carried back from the logit: through an affine layer by its matrix (columns found by feeding unit
    vectors), through an activation by its secant, through a max pool by sharing each window's change between the
    argmax of the sample and that of the baseline.
    """
    trail = [(sample, torch.zeros_like(sample))]
    with torch.no_grad():
        for layer in layers:
            trail.append(tuple(layer(value.unsqueeze(0))[0] for value in trail[-1]))
        multiplier = torch.zeros_like(trail[-1][0])
        multiplier[target] = 1
        for place in range(len(layers) - 1, cut, -1):
            multiplier = _back(layers[place], *trail[place], *trail[place + 1], multiplier)
    x, x0 = trail[cut + 1]
    return multiplier * (x - x0)


def _back(layer: nn.Module, x: Tensor, x0: Tensor, y: Tensor, y0: Tensor, multiplier: Tensor) -> Tensor:
    if isinstance(layer, nn.MaxPool2d):
        return _back_max_pool(layer, x, x0, multiplier)
    if x.shape == y.shape and not isinstance(layer, nn.Linear):
        return multiplier * (y - y0) / (x - x0)
    carried = torch.zeros_like(x).flatten()
    for place in range(len(carried)):
        unit = torch.zeros_like(x).flatten()
        unit[place] = 1
        column = layer(unit.view_as(x).unsqueeze(0))[0] - layer(torch.zeros_like(x).unsqueeze(0))[0]
        carried[place] = (multiplier * column).sum()
    return carried.view_as(x)


def _back_max_pool(layer: nn.MaxPool2d, x: Tensor, x0: Tensor, multiplier: Tensor) -> Tensor:
    size, stride, padding = layer.kernel_size, layer.stride, layer.padding
    carried = torch.zeros_like(x)
    channels, rows, columns = multiplier.shape
    for channel in range(channels):
        for row in range(rows):
            for column in range(columns):
                window = [
                    (channel, r, c)
                    for r in range(row * stride - padding, row * stride - padding + size)
                    for c in range(column * stride - padding, column * stride - padding + size)
                    if 0 <= r < x.shape[1] and 0 <= c < x.shape[2]
                ]
                first = max(window, key=lambda place: float(x[place]))
                second = max(window, key=lambda place: float(x0[place]))
                largest = max(x[first], x0[second])
                for place, change in ((first, largest - x0[second]), (second, x[first] - largest)):
                    if change != 0:
                        carried[place] += multiplier[channel, row, column] * change / (x[place] - x0[place])
    return carried
