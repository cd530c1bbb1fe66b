"""Which parameters a method trains (formula 9): those of the critical neurons, and the last layer's."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from neusemslice.cutting import Cut, cut_neurons
from neusemslice.model_slice import ModelSlice
from neusemslice.neuron_parameters import neuron_parameters
from neusemslice.tracing import SliceableModel


def trainable_parameters(model: SliceableModel, slices: Sequence[ModelSlice]) -> dict[str, Bool[Tensor, "..."]]:
    """For each parameter of the model, True for the entries that train: those that every slice keeps.

    A neuron is trained for its own layer's sake: where branches are added up, each trains its own choice. A deeparc
    slice trains whole layers: those that are not redundant. What belongs to no sliceable layer always trains, the last
    layer above all.

    Args:
        slices: of this model; with none, everything trains.
    """
    masks = {
        name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in model.graph_module.named_parameters()
    }
    for slice_ in slices:
        own = neuron_parameters(_cut_of(model, slice_))
        masks = {name: mask & own[name] for name, mask in masks.items()}
    return masks


def _cut_of(model: SliceableModel, slice_: ModelSlice) -> Cut:
    kept = slice_.merged()
    if slice_.config.strategy != "deeparc":
        return cut_neurons(model, kept, "scatter")
    couplings = model.couplings
    redundant = {name: keep for name, keep in kept.items() if not bool(keep.any())}
    groups = torch.ones(len(couplings.group_of), dtype=torch.bool)
    for layers, trains in ((redundant, False), (kept.keys() - redundant.keys(), True)):
        for name in layers:
            groups[couplings.group_of[couplings.neurons[name]]] = trains
    return Cut(model, groups[couplings.group_of], redundant)
