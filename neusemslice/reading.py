"""One run of a model that keeps the value of every neuron."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx

from neusemslice.errors import DatasetError
from neusemslice.tracing import SliceableModel

PASS_BYTES = 2 * 1024**3
"""A forward and backward pass takes as many samples at once as need about that much memory."""
_COPIES = 3
"""Of each layer's output: the value, its gradient, and what a layer keeps for its backward pass."""


@dataclass(frozen=True)
class Reading:
    """Values of the read places by layer name, in forward order and as the network shapes them, and the logits."""

    values: dict[str, Tensor]
    logits: Float[Tensor, "batch categories"]


class Reader(fx.Interpreter):
    """Runs a model's canonical graph and keeps the values at the read places.

    Where gradients are enabled they begin at the first read place: nothing before it is recorded.
    """

    def __init__(self, model: SliceableModel) -> None:
        super().__init__(model.graph_module)
        self.extra_traceback = False
        self._model = model
        self._layer_of: dict[Any, str] = {layer.read_node: layer.name for layer in model.sliceable_layers}
        self._values: dict[str, Tensor] = {}
        self._logits: Tensor | None = None

    def read(self, inputs: Float[Tensor, "batch ..."]) -> Reading:
        """The values and logits for a batch.

        Raises:
            DatasetError: a logit is NaN or infinite.
        """
        self._values, self._logits = {}, None
        self.run(inputs)
        assert self._logits is not None  # the logits node is in the graph
        if not torch.isfinite(self._logits).all():
            raise DatasetError(
                "The network's output on a batch is NaN or infinite.",
                hint="Check the values and normalisation of the inputs, and the network's weights.",
            )
        return Reading({layer.name: self._values[layer.name] for layer in self._model.sliceable_layers}, self._logits)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.target in self._layer_of:
            if torch.is_grad_enabled() and not value.requires_grad:
                value.requires_grad_()
            self._values[self._layer_of[n.target]] = value
        if n.target == self._model.logits_node:
            self._logits = value
        return value


def samples_at_once(model: SliceableModel) -> int:
    """How many samples a pass may take for its values to stay within `PASS_BYTES`; one at least."""
    meter = _Meter(model)
    with torch.no_grad():
        meter.run(torch.zeros(1, *model.input_shape, device=model.device, dtype=model.dtype))
    return max(1, PASS_BYTES // (_COPIES * meter.bytes))


class _Meter(fx.Interpreter):
    """Adds up the sizes of all layers' outputs."""

    def __init__(self, model: SliceableModel) -> None:
        super().__init__(model.graph_module)
        self.bytes = 0

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.bytes += value.numel() * value.element_size()
        return value
