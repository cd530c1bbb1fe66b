"""DeepLIFT for all layers and each sample's own category in one forward and one backward pass, exactly."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from neusemslice.contribution.rescale import RULES
from neusemslice.errors import DatasetError
from neusemslice.reading import Reader, Reading
from neusemslice.tracing import SliceableModel


class DeepLift:
    """Contributions of one model's neurons against one baseline, whose values are computed once.

    Args:
        baseline: the reference input, [*input shape] or [1, *input shape]; zeros if None.

    Raises:
        DatasetError: the baseline has another shape.
    """

    def __init__(self, model: SliceableModel, baseline: Float[Tensor, "..."] | None = None) -> None:
        if baseline is None:
            baseline = torch.zeros(model.input_shape)
        if tuple(baseline.shape) not in (model.input_shape, (1, *model.input_shape)):
            raise DatasetError(
                f"The baseline has shape {tuple(baseline.shape)}, the network takes {model.input_shape}.",
                hint="Give one sample.",
            )
        self._model = model
        recorder = _Recorder(model)
        with torch.no_grad():
            sample = baseline.reshape(1, *model.input_shape)
            self._reference: Reading = recorder.read(sample.to(model.device, model.dtype))
        self._reader = _RescaledReader(model, recorder.nonlinear)

    def contributions(
        self, inputs: Float[Tensor, "batch ..."], targets: Int64[Tensor, " batch"]
    ) -> dict[str, Float[Tensor, "batch _"]]:
        """Layer name -> [batch, neurons]; the neurons of every layer sum to logit(x) - logit(baseline).

        Raises:
            DatasetError: an output is NaN or infinite.
        """
        with torch.enable_grad():
            reading = self._reader.read(inputs)
            own_logits = reading.logits.gather(1, targets.unsqueeze(1)).sum()
        multipliers = torch.autograd.grad(own_logits, list(reading.values.values()))
        contributions = {}
        for (name, value), multiplier in zip(reading.values.items(), multipliers, strict=True):
            difference = value.detach() - self._reference.values[name]
            contributions[name] = self._model.layer(name).per_neuron(multiplier * difference).sum(2)
        return contributions


def deeplift_contributions(
    model: SliceableModel,
    inputs: Float[Tensor, "batch ..."],
    targets: Int64[Tensor, " batch"],
    baseline: Float[Tensor, "..."] | None = None,
) -> dict[str, Float[Tensor, "batch _"]]:
    """DeepLIFT (Rescale) contribution of each neuron to each sample's target logit, for all layers at once.

    Completeness: the neurons of any one layer sum to logit(x) - logit(baseline).

    Args:
        model: the traced model.
        inputs: a batch of samples, whose contributions do not depend on each other.
        targets: category whose logit is attributed, one a sample.
        baseline: the reference input, [*input shape]; zeros if None.

    Raises:
        DatasetError: the baseline has another shape, or an output is NaN or infinite.
    """
    return DeepLift(model, baseline).contributions(inputs.to(model.device, model.dtype), targets.to(model.device))


class _Recorder(Reader):
    """Keeps input and output of every nonlinear layer."""

    def __init__(self, model: SliceableModel) -> None:
        super().__init__(model)
        self.nonlinear: dict[str, tuple[tuple[Tensor, ...], Tensor]] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = super().call_module(target, args, kwargs)
        if type(self.fetch_attr(target)) in RULES:
            self.nonlinear[target] = args, output
        return output


class _RescaledReader(Reader):
    """Runs the model with every nonlinear layer's gradient replaced by its multiplier against the baseline."""

    def __init__(self, model: SliceableModel, reference: dict[str, tuple[tuple[Tensor, ...], Tensor]]) -> None:
        super().__init__(model)
        self._baseline = reference

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target not in self._baseline:
            return super().call_module(target, args, kwargs)
        layer = self.fetch_attr(target)
        return RULES[type(layer)](layer, args, *self._baseline[target])
