"""What one forward and one backward pass tell of every neuron: its value, and how the loss answers to it."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from neusemslice.batches import is_regression
from neusemslice.contribution.weight_terms import weight_terms
from neusemslice.reading import Reader
from neusemslice.tracing import SliceableModel

READING_QUANTITIES = frozenset({"activation", "loss_slope", "weight_term"})
LayerValues = Mapping[str, Tensor]
"""Layer name -> [batch, neurons], or [batch, categories, neurons] where a sample has a value for each category."""

Answer = tuple[Float64[Tensor, "batch 1"], Float[Tensor, "batch categories"]]
"""A loss's gradient towards the logits, as a size for each sample and a direction."""


class ReadingPass:
    """Measures any of three quantities, of all layers, in one forward pass and at most one backward pass.

    - `activation`: mean over space of f, [batch, neurons].
    - `loss_slope`: sum over space of f * dL/df.
    - `weight_term`: sum over the neuron's own weights, without bias and norm, of (w * dL/dw)^2.

    L is the sample's cross entropy. In a regression there is a loss for each output c, (output_c - target_c)^2 / 2,
    with a backward pass each, and the last two quantities are [batch, categories, neurons].
    """

    def __init__(self, model: SliceableModel, quantities: frozenset[str]) -> None:
        self._model = model
        self._quantities = quantities
        self._producers = _ProducerReader(model) if "weight_term" in quantities else None
        self._reader = self._producers or Reader(model)

    def __call__(
        self, inputs: Float[Tensor, "batch ..."], labels: Shaped[Tensor, "batch ..."]
    ) -> dict[str, LayerValues]:
        """The quantities asked for.

        Raises:
            DatasetError: an output is NaN or infinite.
        """
        needs_gradients = self._quantities != {"activation"}
        with torch.set_grad_enabled(needs_gradients):
            reading = self._reader.read(inputs)
        found: dict[str, LayerValues] = {}
        if "activation" in self._quantities:
            found["activation"] = {
                layer.name: layer.per_neuron(reading.values[layer.name].detach()).mean(2)
                for layer in self._model.sliceable_layers
            }
        if needs_gradients:
            answers = loss_answers(reading.logits.detach(), labels)
            per_category = [
                self._one_backward(reading.values, reading.logits, answer, last=number == len(answers) - 1)
                for number, answer in enumerate(answers)
            ]
            for quantity in per_category[0]:
                parts = [values[quantity] for values in per_category]
                found[quantity] = _stack(parts) if is_regression(labels) else parts[0]
        return found

    def _one_backward(
        self, values: dict[str, Tensor], logits: Tensor, answer: Answer, *, last: bool
    ) -> dict[str, LayerValues]:
        size, direction = answer
        outputs = self._producers.outputs if self._producers is not None else {}
        read = values if "loss_slope" in self._quantities else {}
        gradients = torch.autograd.grad(
            logits, [*read.values(), *outputs.values()], grad_outputs=direction, retain_graph=not last
        )
        found: dict[str, LayerValues] = {}
        if read:
            found["loss_slope"] = {
                name: self._model.layer(name).per_neuron(value.detach() * gradient).sum(2).double() * size
                for (name, value), gradient in zip(read.items(), gradients, strict=False)
            }
        if self._producers is not None:
            found["weight_term"] = {
                name: weight_terms(self._model.graph_module.get_submodule(name), self._producers.inputs[name], gradient)
                * size.square()
                for name, gradient in zip(outputs, gradients[len(read) :], strict=True)
            }
        return found


def loss_answers(logits: Float[Tensor, "batch categories"], labels: Shaped[Tensor, "batch ..."]) -> list[Answer]:
    """The gradients of the samples' losses towards the logits: one, or one for each output of a regression."""
    if not is_regression(labels):
        return [_cross_entropy_answer(logits, labels)]
    errors = logits.double() - labels
    outputs = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    return [(errors[:, output : output + 1], direction.expand_as(logits)) for output, direction in enumerate(outputs)]


def _cross_entropy_answer(logits: Float[Tensor, "batch categories"], labels: Int64[Tensor, " batch"]) -> Answer:
    """The gradient is p - onehot(label).

    Its entry at the label, p - 1, is minus the sum of the other entries; taken as that sum it keeps its digits when the
    network is sure, where p - 1 itself would be rounded to 0. With the size (the probability of being wrong) set apart,
    what goes back through the network is of the order of 1.
    """
    log_p = logits.double().log_softmax(1)
    wrong = log_p.scatter(1, labels.unsqueeze(1), -torch.inf)
    log_doubt = wrong.logsumexp(1, keepdim=True)
    direction = (wrong - log_doubt).exp().scatter(1, labels.unsqueeze(1), -1.0)
    return log_doubt.exp(), direction.to(logits.dtype)


def _stack(per_category: list[LayerValues]) -> LayerValues:
    return {name: torch.stack([values[name] for values in per_category], dim=1) for name in per_category[0]}


class _ProducerReader(Reader):
    """Keeps what every sliceable layer's producer was given and what it gave, as places for gradients."""

    def __init__(self, model: SliceableModel) -> None:
        super().__init__(model)
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._names = {layer.name for layer in model.sliceable_layers}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = super().call_module(target, args, kwargs)
        if target in self._names:
            if not output.requires_grad:
                output.requires_grad_()
            self.inputs[target], self.outputs[target] = args[0].detach(), output
        return output
