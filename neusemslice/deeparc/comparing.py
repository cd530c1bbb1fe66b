"""How alike a network's places are to CKA, and which layers that makes redundant."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float64
from torch import Tensor

from neusemslice.batches import Batches, check_batches, is_regression, require_reiterable
from neusemslice.config import SlicingConfig
from neusemslice.deeparc.places import NodeReader, Place, find_places, neuron_axis
from neusemslice.errors import ConfigError
from neusemslice.features import Plan, Read, collect_features, first_samples
from neusemslice.model_slice import ModelSlice
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.similarity import centred_gram
from neusemslice.tracing import SliceableModel

MOST_SAMPLES = 1024
"""Samples of all categories together that are compared, at most: each place has a matrix of this size, squared."""


def cka_matrix(
    model: SliceableModel,
    data: Batches,
    config: SlicingConfig | None = None,
    *,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> tuple[tuple[str, ...], Float64[Tensor, "places places"]]:
    """Linear CKA between the values at all places of a network that every path runs through (Kornblith et al. 2019).

    In a sequence the places are the layers' outputs, in a residual network the blocks' (see
    `neusemslice.deeparc.places`). Compared are the first samples of each category, equally many and together at most
    `MOST_SAMPLES`. A place that does not vary on them is like itself alone.

    Args:
        data: re-iterable batches (inputs, labels).
        config: its estimator, landscape, samples_per_category and memory budget are used.

    Returns:
        The places' paths, in forward order, and the matrix, which is 1 on its diagonal.

    Raises:
        ConfigError: the memory budget does not hold a place's outputs beside the matrices.
        DatasetError: there are fewer samples than the estimator needs, or the data does not fit the model.
        StoppedError: should_stop() returned true.
    """
    config = config or SlicingConfig(strategy="deeparc")
    require_reiterable(data)
    places = find_places(model)
    grams = _grams(model, data, places, config, Progress(on_progress, should_stop))
    hsic = torch.stack([torch.stack([one.dot(other) for other in grams]) for one in grams]).cpu()
    norms = hsic.diagonal().sqrt()
    matrix = torch.where(norms.outer(norms) > 0, hsic / norms.outer(norms), 0.0).fill_diagonal_(1.0)
    return tuple(place.path for place in places), matrix


def slice_by_similarity(
    model: SliceableModel,
    data: Batches,
    config: SlicingConfig,
    *,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> ModelSlice:
    """A deeparc slice: layers between two adjacent places are as redundant as these are alike.

    Raises:
        Those of `cka_matrix`.
    """
    _, matrix = cka_matrix(model, data, config, on_progress=on_progress, should_stop=should_stop)
    similarity = dict.fromkeys((layer.name for layer in model.sliceable_layers), 0.0)
    for place, alike in zip(find_places(model)[1:], matrix.diagonal(1).tolist(), strict=True):
        similarity |= dict.fromkeys(place.layers, alike)
    shape = {layer.name: (model.categories, layer.neurons) for layer in model.sliceable_layers}
    curves = {name: torch.full(shape[name], alike, dtype=torch.float64) for name, alike in similarity.items()}
    return ModelSlice(
        config,
        model.fingerprint,
        contributions={name: 1 - curve for name, curve in curves.items()},
        orders={name: torch.arange(size[1]).repeat(size[0], 1) for name, size in shape.items()},
        curves=curves,
        control_curves=curves,
    )


def _grams(
    model: SliceableModel, data: Batches, places: Sequence[Place], config: SlicingConfig, progress: Progress
) -> list[Float64[Tensor, " pairs"]]:
    """The places' centred Gram matrices, flattened."""
    taken = _EvenlyTaken(model, data, config.samples_per_category)
    matrices = 8 * taken.most**2 * len(places)
    if matrices >= config.memory_budget_bytes:
        raise ConfigError(
            f"The Gram matrices of {len(places)} places on {taken.most} samples take {matrices:,} bytes; "
            f"memory_budget_bytes is {config.memory_budget_bytes:,}.",
            field="memory_budget_bytes",
            hint="Raise it, or lower samples_per_category.",
        )
    read = _reader(model, places)
    plan = Plan([taken.most], lambda labels: torch.zeros(len(labels), dtype=torch.long), config.landscape)
    example = next(inputs for inputs, _ in taken if len(inputs))[:1]
    with torch.no_grad():
        shapes = read(example)
    grams: list[Tensor] = []
    for parts in plan.passes(shapes, config.memory_budget_bytes - matrices):
        features = collect_features(
            model, taken, read, plan, parts, partial(progress.report, "coverage", len(grams), len(places))
        )
        for part in parts:
            grams.append(centred_gram(features.pop(part), config.estimator).flatten())
            progress.report("coverage", len(grams), len(places))
    return grams


class _EvenlyTaken:
    """The data's batches with only the first samples of each category, equally many, and `most` in all."""

    def __init__(self, model: SliceableModel, data: Batches, samples_per_category: int) -> None:
        self._model, self._data = model, data
        self._each = min(samples_per_category, max(1, MOST_SAMPLES // model.categories))
        self.most = min(self._each * model.categories, MOST_SAMPLES)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        limits = torch.full((self._model.categories,), self._each)
        counts = torch.zeros_like(limits)
        for inputs, labels in check_batches(self._data, self._model):
            if is_regression(labels):
                yield inputs, labels  # every sample is of every category
                continue
            chosen = first_samples(labels.cpu(), counts, limits)
            counts += torch.bincount(labels.cpu()[chosen], minlength=len(counts))
            yield inputs[chosen.to(inputs.device)], labels[chosen.to(labels.device)]
            if int(counts.sum()) >= self.most:
                return


def _reader(model: SliceableModel, places: Sequence[Place]) -> Read:
    """Reads the values of the places' neurons."""
    network = model.graph_module
    nodes = {node.target: node for node in network.graph.nodes if node.op == "call_module"}
    axes = {place.path: neuron_axis(network, nodes[place.path]) for place in places}
    reader = NodeReader(network, axes)

    def read(inputs: Tensor) -> dict[str, Tensor]:
        values = reader.read(inputs)
        return {
            path: value.movedim(axes[path], 1).flatten(2) if value.ndim > 2 else value[..., None]
            for path, value in values.items()
        }

    return read
