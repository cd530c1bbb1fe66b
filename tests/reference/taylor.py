"""How each sample's loss answers to neurons and weights, one sample at a time, in float64."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

STEP = 1e-5

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits [1, categories], the sample's label) -> one number."""


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    return -logits.log_softmax(1)[0, label]


def squared_error(output: int) -> Loss:
    """Half the squared error of one output."""
    return lambda outputs, target: (outputs[0, output] - target[output]).square() / 2


def loss_slopes(head: nn.Module, tail: nn.Module, data: tuple[Tensor, Tensor], loss: Loss) -> Tensor:
    """dL/ds at s = 1, where s multiplies one channel between head and tail, [samples, channels].

    Without automatic differentiation: by central differences, one sample after the other.
    """
    slopes = []
    with torch.no_grad():
        for sample, label in zip(*data, strict=True):
            values = head(sample.double().unsqueeze(0))
            scaled = []
            for channel in range(values.shape[1]):
                for scale in (1 + STEP, 1 - STEP):
                    scaled.append(values[0].clone())
                    scaled[-1][channel] *= scale
            losses = torch.stack([loss(logits.unsqueeze(0), label) for logits in tail(torch.stack(scaled))])
            slopes.append((losses[0::2] - losses[1::2]) / (2 * STEP))
    return torch.stack(slopes)


def weight_terms(network: nn.Module, layer: str, data: tuple[Tensor, Tensor], loss: Loss) -> Tensor:
    """Sum over a neuron's weights of (w * dL/dw)^2, [samples, neurons], from each sample's own weight gradient."""
    weight = network.get_submodule(layer).weight
    terms = []
    for sample, label in zip(*data, strict=True):
        (gradient,) = torch.autograd.grad(loss(network(sample.double().unsqueeze(0)), label), weight)
        terms.append((weight.detach() * gradient).square().flatten(1).sum(1))
    return torch.stack(terms)


def per_category(values: Tensor, labels: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """[samples, neurons] -> [categories, neurons]."""
    return torch.stack([reduce(values[labels == category]) for category in range(int(labels.max()) + 1)])
