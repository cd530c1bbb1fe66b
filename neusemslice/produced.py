"""What an operation made can be what the next one works on."""

from typing import Protocol, runtime_checkable

import torch
from torch import fx, nn

from neusemslice.errors import ConfigError
from neusemslice.modes import evaluating
from neusemslice.tracing import SliceableModel, trace


@runtime_checkable
class Produced(Protocol):
    """A result with a network: `Restructured`, `Pruned`, `FineTuned`."""

    @property
    def model(self) -> fx.GraphModule:
        """In canonical form."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample."""


def as_model(network: SliceableModel | Produced) -> SliceableModel:
    """The model itself, or that of a result, with parameters of its own."""
    if isinstance(network, SliceableModel):
        return network
    parameter = next(network.model.parameters())
    example = torch.zeros(1, *network.input_shape, device=parameter.device, dtype=parameter.dtype)
    return trace(network.model, example)


def as_teacher(teacher: nn.Module | SliceableModel, model: SliceableModel) -> nn.Module:
    """The network to imitate.

    Raises:
        ConfigError: it has other inputs or outputs than the model.
    """
    module = teacher.graph_module if isinstance(teacher, SliceableModel) else teacher
    example = torch.zeros(1, *model.input_shape, device=model.device, dtype=model.dtype)
    try:
        with evaluating(module), torch.no_grad():
            shape = tuple(module(example).shape)
    except RuntimeError as error:
        raise ConfigError(
            f"The teacher does not take samples of {model.input_shape} on {model.device}: {error}.",
            field="teacher",
            hint="Give the network that the model was made from, on the same device.",
        ) from error
    if shape != (1, model.categories):
        raise ConfigError(
            f"The teacher's output for one sample is {shape}; the model has {model.categories} categories.",
            field="teacher",
            hint="Give the network that the model was made from.",
        )
    return module
