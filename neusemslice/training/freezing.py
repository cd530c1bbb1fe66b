"""Parts of a network that stay as they are, to the last bit, while the rest trains.

Gradients of frozen entries are zeroed before every step, so that clipping sees those of what trains, and so that a new
optimizer's momenta for them stay zero: its step adds zero to them. Weight decay, which moves an entry whose gradient is
zero, is taken from the optimizer and done here, for the other entries. A norm with a frozen feature keeps its running
statistics, which move without any gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from neusemslice.errors import ConfigError
from neusemslice.roles import NORMS

Trainable = Mapping[str, Bool[Tensor, "..."]]
"""For parameters by name, which of their entries may change."""


class Freeze:
    """What of a network may train, and what stays as it is.

    Args:
        network: set to require gradients where something trains, and nowhere else.
        trainable: None: everything trains. Otherwise parameters that are not named stay as they are.

    Raises:
        ConfigError: a name is no parameter's, a mask has another shape, or nothing is left to train.
    """

    def __init__(self, network: nn.Module, trainable: Trainable | None) -> None:
        self._network = network
        self._partly: list[_Partly] = []
        parameters = dict(network.named_parameters())
        if trainable is not None:
            _check(parameters, trainable)
        self._required = {name: parameter.requires_grad for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            mask = torch.ones(1, dtype=torch.bool) if trainable is None else trainable.get(name, torch.zeros(1))
            parameter.requires_grad_(bool(mask.any()))
            if bool(mask.any()) and not bool(mask.all()):
                self._partly.append(_Partly.of(parameter, mask.to(parameter.device)))
        self._still = [] if trainable is None else list(_still_norms(network, trainable))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those of which something trains."""
        return [parameter for parameter in self._network.parameters() if parameter.requires_grad]

    @property
    def partly_frozen(self) -> list[nn.Parameter]:
        """Those of which something trains and something does not; they decay here, not in an optimizer."""
        return [partly.parameter for partly in self._partly]

    def train_mode(self) -> None:
        """Train mode, but for the norms that keep their statistics."""
        self._network.train()
        for norm in self._still:
            norm.eval()

    def release(self) -> None:
        """Gradients are required again where they were before, and none is kept."""
        for name, parameter in self._network.named_parameters():
            parameter.requires_grad_(self._required[name])
            parameter.grad = None

    def clear_gradients(self) -> None:
        """Frozen entries get a gradient of zero."""
        for partly in self._partly:
            partly.clear_gradient()

    def decay_gradients(self, rate: float) -> None:
        """Add the gradient of rate / 2 |parameter|^2 in what trains of the partly frozen parameters."""
        for partly in self._partly:
            partly.decay_gradient(rate)

    def decay(self, share: float) -> None:
        """Take this share away of what trains of the partly frozen parameters."""
        for partly in self._partly:
            partly.decay(share)


@dataclass(frozen=True, eq=False)
class _Partly:
    """A parameter of which some entries are frozen. No operation rounds what is frozen, or branches for each entry.

    Attributes:
        trainable: one where an entry may change, zero where it is frozen; of size one along dimensions that do not
            tell entries apart.
        moves: the same as integers of all bits set, and none.
    """

    parameter: nn.Parameter
    trainable: Tensor
    moves: Tensor

    @classmethod
    def of(cls, parameter: nn.Parameter, trainable: Bool[Tensor, "..."]) -> "_Partly":
        rows = trainable.reshape(len(trainable), -1)
        if bool((rows == rows[:, :1]).all()):
            trainable = rows[:, 0].view(-1, *[1] * (parameter.ndim - 1))
        return cls(parameter, trainable.to(parameter.dtype), -trainable.to(_bits(parameter.detach()).dtype))

    def clear_gradient(self) -> None:
        if self.parameter.grad is not None:
            _bits(self.parameter.grad).bitwise_and_(self.moves)

    def decay_gradient(self, rate: float) -> None:
        if self.parameter.grad is not None:
            self.parameter.grad.addcmul_(self.parameter.detach(), self.trainable, value=rate)

    def decay(self, share: float) -> None:
        if self.parameter.grad is not None:
            self.parameter.detach().mul_(1 - share * self.trainable)


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(values: Tensor) -> Tensor:
    """The same memory as integers."""
    return values.view(_INTEGERS[values.element_size()])


def _check(parameters: Mapping[str, nn.Parameter], trainable: Trainable) -> None:
    for name, mask in trainable.items():
        if name not in parameters:
            raise ConfigError(f"There is no parameter {name!r}.", field="trainable", hint=f"Use {list(parameters)}.")
        if mask.dtype != torch.bool or mask.shape != parameters[name].shape:
            raise ConfigError(
                f"The mask of {name!r} is {mask.dtype} of shape {tuple(mask.shape)}; "
                f"the parameter has shape {tuple(parameters[name].shape)}.",
                field="trainable",
                hint="Give a boolean for each entry.",
            )
    if not any(bool(mask.any()) for mask in trainable.values()):
        raise ConfigError("Nothing is left to train.", field="trainable", hint="Keep fewer neurons frozen.")


def _still_norms(network: nn.Module, trainable: Trainable) -> list[nn.Module]:
    """Norms with a frozen feature, and those whose features nobody asks to train."""
    still = []
    for path, layer in network.named_modules():
        if isinstance(layer, NORMS):
            masks = [trainable.get(f"{path}.{name}" if path else name) for name in ("weight", "bias")]
            if any(mask is None or not bool(mask.all()) for mask in masks):
                still.append(layer)
    return still
