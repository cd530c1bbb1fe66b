"""Outputs of the network's layers on groups of samples: what CKA compares.

A group is the samples that are compared together: those of one category, or in a regression, where every sample belongs
to every category, all of them. Memory is bounded: passes over the data are planned so that what a pass holds fits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from neusemslice.batches import Batches, check_batches
from neusemslice.config import Landscape
from neusemslice.errors import ConfigError
from neusemslice.reading import Reader, samples_at_once
from neusemslice.similarity import working_bytes
from neusemslice.tracing import SliceableModel

Read = Callable[[Tensor], Mapping[str, Tensor]]
"""inputs [batch, *input shape] -> name of a place -> its values [batch, neurons, positions]."""
GroupOf = Callable[[Tensor], Tensor]
"""labels of a batch -> the number of each sample's group, [batch]."""
Part = tuple[str, int]
"""A place and a group: its outputs on that group's samples are held and compared at once."""


def layer_reader(model: SliceableModel) -> Read:
    """Reads the values of every sliceable layer's neurons."""
    reader = Reader(model)

    def read(inputs: Tensor) -> dict[str, Tensor]:
        values = reader.read(inputs).values
        return {layer.name: layer.per_neuron(values[layer.name]) for layer in model.sliceable_layers}

    return read


@dataclass(frozen=True)
class Plan:
    """What to collect.

    Attributes:
        sizes: samples to take of each group, at most; the first ones in the data.
        group_of: which group a sample belongs to.
        landscape: whether positions are averaged.
    """

    sizes: Sequence[int]
    group_of: GroupOf
    landscape: Landscape

    def passes(self, values: Mapping[str, Tensor], budget_bytes: int) -> list[list[Part]]:
        """Places and groups, in order, in as few passes over the data as the budget allows.

        Args:
            values: what the reader gives for any samples: their shapes and type.
            budget_bytes: for the features that a pass holds and what comparing them takes.

        Raises:
            ConfigError: a place's outputs on a single group do not fit.
        """
        passes: list[list[Part]] = []
        held = largest = budget_bytes + 1
        for place, value in values.items():
            _, neurons, positions = _shaped(value, self.landscape).shape
            for group, size in enumerate(self.sizes):
                working = working_bytes(size, neurons, positions)
                features = size * neurons * positions * value.element_size()
                if features + working > budget_bytes:
                    raise ConfigError(
                        f"The outputs of {place!r} on the {size} samples of one category take "
                        f"{features + working:,} bytes to compare; memory_budget_bytes is {budget_bytes:,}.",
                        field="memory_budget_bytes",
                        hint="Raise it to at least that, lower samples_per_category, or use landscape='pooled'.",
                    )
                held, largest = held + features, max(largest, working)
                if held + largest > budget_bytes:
                    passes.append([])
                    held, largest = features, working
                passes[-1].append((place, group))
        return passes


def collect_features(
    model: SliceableModel,
    data: Batches,
    read: Read,
    plan: Plan,
    parts: Sequence[Part],
    tick: Callable[[], None],
    before: Int64[Tensor, " groups"] | None = None,
) -> dict[Part, Float[Tensor, "_ _ _"]]:
    """The values [samples, neurons, positions] of each part, samples in the order of the data.

    Which samples are taken depends on the data alone, not on its batches. One pass, which ends as soon as all groups
    that are asked for have their samples.

    Args:
        tick: called after each batch.
        before: of each group, how many samples come before this data, where it is a later part of a dataset.
    """
    places_of: dict[int, list[str]] = {}
    for place, group in parts:
        places_of.setdefault(group, []).append(place)
    limits = torch.tensor([size if group in places_of else 0 for group, size in enumerate(plan.sizes)])
    first = torch.zeros_like(limits) if before is None else limits.minimum(before)
    if bool((first == limits).all()):
        return {}
    taken = first.clone()
    features: dict[Part, Tensor] = {}
    at_once = samples_at_once(model)
    for inputs, labels in check_batches(data, model):
        group_of = plan.group_of(labels).cpu()
        chosen = first_samples(group_of, taken, limits)
        if len(chosen):
            group_of = group_of[chosen]
            pieces = [
                _values(read, inputs[piece.to(inputs.device)], plan.landscape, dict(parts))
                for piece in chosen.split(at_once)
            ]
            values = {place: torch.cat([piece[place] for piece in pieces]) for place in dict(parts)}
            for group in group_of.unique().tolist():
                rows = (group_of == group).nonzero()[:, 0]
                start = int(taken[group] - first[group])
                for place in places_of[group]:
                    new = values[place][rows.to(values[place].device)]
                    if (place, group) not in features:
                        features[place, group] = new.new_empty(int(limits[group] - first[group]), *new.shape[1:])
                    features[place, group][start : start + len(rows)] = new
            taken += torch.bincount(group_of, minlength=len(limits))
        tick()
        if bool((taken == limits).all()):
            break
    return {part: values[: int((taken - first)[part[1]])] for part, values in features.items()}


def _values(read: Read, inputs: Tensor, landscape: Landscape, places: Iterable[str]) -> dict[str, Tensor]:
    with torch.no_grad():
        values = read(inputs)
    return {place: _shaped(values[place], landscape) for place in places}


def first_samples(
    groups: Int64[Tensor, " batch"], taken: Int64[Tensor, " groups"], limits: Int64[Tensor, " groups"]
) -> Int64[Tensor, " chosen"]:
    """Positions in the batch of the samples whose group is not full yet, in order.

    Args:
        groups: of each sample.
        taken: how many samples each group has already.
        limits: how many it takes.
    """
    one_hot = torch.nn.functional.one_hot(groups, len(taken))
    rank = (one_hot.cumsum(0) * one_hot).sum(1) + taken[groups]
    return (rank <= limits[groups]).nonzero()[:, 0]


def _shaped(values: Float[Tensor, "batch neurons positions"], landscape: Landscape) -> Float[Tensor, "batch neurons _"]:
    return values.mean(2, keepdim=True) if landscape == "pooled" else values
