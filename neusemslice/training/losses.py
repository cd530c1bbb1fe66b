"""What a training makes small."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from neusemslice.modes import evaluating


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of one step, on the network's device; `rows` says which of all samples they are, on the CPU."""

    inputs: Float[Tensor, "batch ..."]
    labels: Int64[Tensor, " batch"]
    rows: Int64[Tensor, " batch"]


Loss = Callable[[nn.Module, Batch], Tensor]
"""The mean loss of a step's samples, to be differentiated."""


def logits_of(network: nn.Module, inputs: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch categories"]:
    """The network's logits; logarithms where its last layer gives probabilities, which are logits as well."""
    outputs: Tensor = network(inputs)
    if isinstance(list(network.modules())[-1], nn.Softmax):
        return outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()
    return outputs


def cross_entropy(network: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Mean cross entropy of the logits (formula 10)."""
    return functional.cross_entropy(logits_of(network, batch.inputs), batch.labels)


def distillation(teacher: nn.Module, *, temperature: float = 4.0, weight: float = 0.9) -> Loss:
    """Learn from a teacher's logits and from the labels (Hinton et al., arXiv 1503.02531).

        weight * temperature^2 * KL(teacher / temperature || network / temperature) + (1 - weight) * cross entropy

    Args:
        teacher: a network with the same outputs; it runs in eval mode and is left as it is.
        temperature: softens both distributions.
        weight: of the teacher, in [0, 1].
    """

    def loss(network: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        with evaluating(teacher), torch.no_grad():
            taught = logits_of(teacher, batch.inputs)
        logits = logits_of(network, batch.inputs)
        softened = functional.kl_div(
            functional.log_softmax(logits / temperature, dim=1),
            functional.log_softmax(taught / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return weight * temperature**2 * softened + (1 - weight) * functional.cross_entropy(logits, batch.labels)

    return loss
