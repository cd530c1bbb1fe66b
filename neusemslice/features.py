"""A layer's outputs on some samples of each category: what CKA compares."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from neusemslice.batches import Batches, check_batches
from neusemslice.config import Landscape
from neusemslice.errors import DatasetError
from neusemslice.progress import Progress
from neusemslice.reading import Reader
from neusemslice.tracing import SliceableLayer, SliceableModel


def layer_groups(
    layers: Sequence[SliceableLayer], *, samples: int, value_bytes: int, landscape: Landscape, budget_bytes: int
) -> Iterator[list[SliceableLayer]]:
    """Layers in forward order, in groups whose features fit the budget; a layer that alone does not is a group.

    Args:
        samples: of all categories together.
        value_bytes: size of one value.
    """
    group: list[SliceableLayer] = []
    held = 0
    for layer in layers:
        positions = layer.spatial if landscape == "flattened" else 1
        size = samples * layer.neurons * positions * value_bytes
        if group and held + size > budget_bytes:
            yield group
            group, held = [], 0
        group.append(layer)
        held += size
    if group:
        yield group


def collect_features(
    model: SliceableModel,
    data: Batches,
    layers: Sequence[SliceableLayer],
    *,
    samples_per_category: int,
    landscape: Landscape,
    progress: Progress,
) -> dict[str, list[Float[Tensor, "_ _ _"]]]:
    """For each layer and category, the outputs on the category's first samples, in the order of the data.

    Which samples are taken depends on the data alone, not on its batches. One forward pass, which ends as soon as
    every category has enough.

    Raises:
        DatasetError: a category has no samples, or a batch is malformed.
    """
    kept: dict[str, list[list[Tensor]]] = {layer.name: [[] for _ in range(model.categories)] for layer in layers}
    counts = torch.zeros(model.categories, dtype=torch.long)
    reader = Reader(model)
    for inputs, labels in check_batches(data, model):
        wanted = _first_samples(labels.cpu(), counts, samples_per_category)
        if len(wanted):
            with torch.no_grad():
                values_of = reader.read(inputs[wanted.to(inputs.device)]).values
            categories = labels.cpu()[wanted]
            counts += torch.bincount(categories, minlength=model.categories)
            for layer in layers:
                values = _landscape_of(layer, values_of[layer.name], landscape)
                for category in categories.unique().tolist():
                    kept[layer.name][category].append(values[(categories == category).to(values.device)])
        progress.report("coverage", 0, 1)
        if bool((counts >= samples_per_category).all()):
            break
    for category, count in enumerate(counts.tolist()):
        if count == 0:
            raise DatasetError(
                f"Category {category} has no samples.", hint="Every category of the model needs samples to be sliced."
            )
    return {name: [torch.cat(parts) for parts in categories] for name, categories in kept.items()}


def _first_samples(labels: Tensor, counts: Tensor, limit: int) -> Tensor:
    """Positions in the batch of samples whose category is not full yet, in order."""
    one_hot = torch.nn.functional.one_hot(labels, len(counts))
    rank = (one_hot.cumsum(0) * one_hot).sum(1) + counts[labels]
    return torch.nonzero(rank <= limit)[:, 0]


def _landscape_of(layer: SliceableLayer, value: Tensor, landscape: Landscape) -> Tensor:
    per_neuron = layer.per_neuron(value)
    return per_neuron.mean(2, keepdim=True) if landscape == "pooled" else per_neuron
