"""What the decision between tasks looks at: the values of the first task's critical neurons, which never change."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from neusemslice.batches import Batches, check_batches
from neusemslice.reading import Reader, samples_at_once
from neusemslice.tracing import SliceableModel


class FeatureReader:
    """Reads the features of samples: each chosen neuron's value, averaged over space, as it is used by the decision.

    Values go through a signed square root, which takes the long tail from activations (Tukey's ladder; FeCAM, arXiv
    2309.14062), so that normal distributions describe them better.

    Args:
        neurons: for layers by name, True for the neurons to read.
    """

    def __init__(self, model: SliceableModel, neurons: Mapping[str, Bool[Tensor, " _"]]) -> None:
        self._model, self._reader = model, Reader(model)
        self._chosen = {
            layer: mask.nonzero()[:, 0].to(model.device) for layer, mask in neurons.items() if bool(mask.any())
        }
        self._at_once = samples_at_once(model)

    @property
    def sizes(self) -> Sequence[int]:
        """Features of each layer."""
        return [len(chosen) for chosen in self._chosen.values()]

    def read(self, inputs: Tensor) -> Float64[Tensor, "samples features"]:
        """The features of some samples, on the CPU."""
        with torch.no_grad():
            return torch.cat([self._piece(piece) for piece in inputs.split(self._at_once)])

    def batches(self, data: Batches) -> Iterator[tuple[Float64[Tensor, "samples features"], Int64[Tensor, " samples"]]]:
        """The features and labels of each batch."""
        for inputs, labels in check_batches(data, self._model):
            yield self.read(inputs), labels.cpu()

    def _piece(self, inputs: Tensor) -> Tensor:
        values = self._reader.read(inputs).values
        parts = []
        for layer, chosen in self._chosen.items():
            pooled = self._model.layer(layer).per_neuron(values[layer]).double().mean(2)
            parts.append(pooled.index_select(1, chosen).cpu())
        features = torch.cat(parts, 1)
        return features.sign() * features.abs().sqrt()
