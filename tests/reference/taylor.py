"""The Taylor term without automatic differentiation: how the loss answers to a neuron's scale."""

import torch
from torch import Tensor, nn

STEP = 1e-5


def taylor_scores(
    head: nn.Module, tail: nn.Module, inputs: Tensor, labels: Tensor, categories: int
) -> dict[int, Tensor]:
    """Category -> mean over its samples of (dL/ds at s = 1)^2, where s multiplies one channel between head and tail.

    By central differences, one sample and one channel at a time; in float64.
    """

    def loss(values: Tensor, label: Tensor) -> float:
        return float(-tail(values).log_softmax(1)[0, label])

    squares: dict[int, list[Tensor]] = {category: [] for category in range(categories)}
    with torch.no_grad():
        for sample, label in zip(inputs, labels, strict=True):
            values = head(sample.unsqueeze(0))
            terms = []
            for channel in range(values.shape[1]):
                sides = []
                for scale in (1 + STEP, 1 - STEP):
                    scaled = values.clone()
                    scaled[:, channel] *= scale
                    sides.append(loss(scaled, label))
                terms.append(((sides[0] - sides[1]) / (2 * STEP)) ** 2)
            squares[int(label)].append(torch.tensor(terms, dtype=torch.float64))
    return {category: torch.stack(terms).mean(0) for category, terms in squares.items()}
