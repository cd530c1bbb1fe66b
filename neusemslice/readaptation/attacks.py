"""Attacks: samples changed by so little that nobody minds, along the loss's gradient, until the network errs.

A change is measured in shares of the valid range, channel by channel, and what leaves the range is clipped, so that
the normalisation of the inputs plays no part. A sample's result depends on that sample alone: on its number, not on
what else is attacked beside it.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neusemslice.batches import require_finite
from neusemslice.modes import evaluating
from neusemslice.progress import Progress
from neusemslice.readaptation.valid_range import ValidRange
from neusemslice.readaptation_config import AttackConfig
from neusemslice.training import InMemory, Samples, logits_of

AT_ONCE = 256
"""Samples that are attacked at once: always so many, so that rounding does not depend on the caller's batches."""


def attack(
    network: nn.Module,
    samples: Samples,
    config: AttackConfig,
    valid_range: ValidRange,
    *,
    seed: int,
    at_once: int = AT_ONCE,
    stage: str = "attack",
    progress: Progress | None = None,
) -> InMemory:
    """The samples, each changed so that the network's loss for its label grows (not targeted), with their labels.

    The network runs in eval mode and is left as it was: no parameter gets a gradient.

    Args:
        network: gives logits, or probabilities.
        valid_range: of its inputs. A value that lies outside may stay where it is.
        seed: with a sample's number it draws that sample's random start.
        at_once: fewer where memory is short.

    Raises:
        ConfigError: the valid range has another number of channels than the samples.
        DatasetError: the network's output is NaN or infinite.
        StoppedError: the caller asked to stop.
    """
    progress = progress or Progress()
    attacked = []
    for rows in torch.arange(len(samples)).split(at_once):
        progress.report(stage, int(rows[0]), len(samples))
        attacked.append(perturb(network, samples.take(rows), samples.labels[rows], rows, config, valid_range, seed))
    progress.report(stage, len(samples), len(samples))
    return InMemory(torch.cat(attacked), samples.labels)


def perturb(
    network: nn.Module,
    inputs: Float[Tensor, "batch ..."],
    labels: Int64[Tensor, " batch"],
    rows: Int64[Tensor, " batch"],
    config: AttackConfig,
    valid_range: ValidRange,
    seed: int,
) -> Float[Tensor, "batch ..."]:
    """One batch attacked, on the CPU; `rows` are the samples' numbers. See `attack`."""
    valid_range.check_channels(tuple(inputs.shape[1:]))
    parameter = next(network.parameters())
    ball = _Ball(inputs.to(parameter.device, parameter.dtype), rows, config, valid_range)
    targets = labels.to(parameter.device)

    def ascent(change: Tensor) -> Tensor:
        return ball.direction(ball.gradient(network, change, targets))

    with evaluating(network):
        change = _descend(ball, ascent, rows, config, seed)
    return ball.at(change).cpu()


def _descend(
    ball: "_Ball",
    ascent: Callable[[Tensor], Tensor],
    rows: Int64[Tensor, " batch"],
    config: AttackConfig,
    seed: int,
) -> Tensor:
    change = torch.zeros_like(ball.inputs)
    if config.method == "fgsm":
        return ball.project(ball.epsilon * ascent(change))
    if config.random_start:
        change = ball.project(ball.random(rows, seed))
    for _ in range(config.steps):
        change = ball.project(change + config.step * ball.epsilon * ascent(change))
    return change


class _Ball:
    """The changes that an attack may make to a batch, in shares of the valid range."""

    def __init__(
        self,
        inputs: Float[Tensor, "batch ..."],
        rows: Int64[Tensor, " batch"],
        config: AttackConfig,
        valid_range: ValidRange,
    ) -> None:
        across = [1, -1] + [1] * (inputs.ndim - 2)
        low, high = (bound.to(inputs).view(across) for bound in (valid_range.low, valid_range.high))
        strengths = torch.tensor(config.epsilons, dtype=torch.float64)[rows % len(config.epsilons)]
        self.inputs = inputs
        self.epsilon = strengths.to(inputs).view([-1] + [1] * (inputs.ndim - 1))
        self._norm = config.norm
        self._unit = high - low
        self._least, self._most = torch.minimum(inputs, low), torch.maximum(inputs, high)

    def at(self, change: Tensor) -> Tensor:
        """The inputs, changed."""
        return torch.clamp(self.inputs + change * self._unit, self._least, self._most)

    def gradient(self, network: nn.Module, change: Tensor, labels: Int64[Tensor, " batch"]) -> Tensor:
        """Of each sample's own loss, in the valid range's unit."""
        with torch.enable_grad():
            disturbed = self.at(change).detach().requires_grad_()
            logits = logits_of(network, disturbed)
            require_finite(logits)
            (gradient,) = torch.autograd.grad(cross_entropy(logits, labels, reduction="sum"), disturbed)
        return gradient * self._unit

    def direction(self, gradient: Tensor) -> Tensor:
        """The change of unit length that raises the loss most, to first order; none where nothing does."""
        if self._norm == "inf":
            return gradient.sign()
        length = _length(gradient)
        return torch.where(length > 0, gradient / length, 0.0)

    def project(self, change: Tensor) -> Tensor:
        """The nearest change that is no longer than epsilon, clipped to what stays valid."""
        if self._norm == "inf":
            change = torch.clamp(change, -self.epsilon, self.epsilon)
        else:
            length = _length(change)
            change = torch.where(length > self.epsilon, change * (self.epsilon / length), change)
        moved = self.at(change) - self.inputs
        return torch.where(self._unit > 0, moved / self._unit, 0.0)

    def random(self, rows: Int64[Tensor, " batch"], seed: int) -> Tensor:
        """A change drawn evenly from all that are no longer than epsilon, for each sample from its own number."""
        shape = tuple(self.inputs.shape[1:])
        drawn = np.stack([self._draw(np.random.default_rng([seed, row]), shape) for row in rows.tolist()])
        return torch.from_numpy(drawn).to(self.inputs) * self.epsilon

    def _draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        if self._norm == "inf":
            return generator.uniform(-1, 1, shape)
        towards = generator.standard_normal(shape)
        radius: float = generator.uniform() ** (1 / towards.size)
        return radius * towards / np.linalg.norm(towards)


def _length(changes: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
    """Of each sample's change, in dimensions of size one to divide it by."""
    lengths: Tensor = torch.linalg.vector_norm(changes.flatten(1), dim=1)
    return lengths.view([-1] + [1] * (changes.ndim - 1))
