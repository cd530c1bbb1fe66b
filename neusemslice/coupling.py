"""Which places of which values hold which neurons, and which neurons can only be removed together.

Every output of a producer gets a label of its own. Labels are carried through the graph by the layers themselves: what
is done to a value is done to its labels. Where two branches are added or multiplied, the labels that meet are coupled:
their neurons stay or go together. What flows into a layer that mixes its inputs (a LayerNorm over channels, an
attention, the network's output) is fixed: it stays whole.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor, fx, nn

from neusemslice.disjoint_sets import DisjointSets
from neusemslice.graph_layers import (
    Add,
    Affine,
    Attention,
    Concat,
    Mean,
    Multiply,
    Narrow,
    QueryKeyValue,
    Reshape,
    Scatter,
    Select,
    Subtract,
)
from neusemslice.lowering import INPUT
from neusemslice.observing import Shape
from neusemslice.roles import (
    ACTIVATIONS,
    CONVOLUTIONS,
    LEARNED,
    MIXERS,
    NORMS,
    POOLS,
    is_depthwise,
    is_producer,
)

FIXED = 0
"""The label of what belongs to no neuron, and the group of all neurons that have to stay."""

Labels = Int64[Tensor, "..."]
"""A label for each place of a sample's value; dimensions along which it does not change have size one."""


@dataclass(frozen=True)
class Balance:
    """A grouped convolution: each of its groups has to keep as many neurons as the others."""

    layer: str
    groups: int
    labels: Int64[Tensor, " neurons"]


@dataclass(frozen=True, eq=False)
class Couplings:
    """The neurons of a graph.

    Attributes:
        labels: of each node's value, by the path of its layer.
        neurons: labels of each producer's neurons.
        group_of: for each label the group it stays or goes with; FIXED where it has to stay.
        gates: producers whose values only scale others, whose neurons they follow.
        balances: what the grouped convolutions ask for.
    """

    labels: Mapping[str, Labels]
    neurons: Mapping[str, Int64[Tensor, " _"]]
    group_of: Int64[Tensor, " labels"]
    gates: frozenset[str]
    balances: tuple[Balance, ...]

    def removable(self, producer: str) -> bool:
        """Whether the producer's neurons may be removed."""
        return bool((self.group_of[self.neurons[producer]] != FIXED).all())

    def coupled(self, producers: Iterable[str]) -> tuple[tuple[str, ...], ...]:
        """Sets of the given producers that share groups of neurons, in their order."""
        sets: list[tuple[set[int], list[str]]] = []
        for producer in producers:
            groups = set(self.group_of[self.neurons[producer]].tolist())
            members = [producer]
            for other in [candidate for candidate in sets if candidate[0] & groups]:
                groups, members = groups | other[0], [*other[1], *members]
                sets.remove(other)
            sets.append((groups, members))
        return tuple(tuple(members) for _, members in sets if len(members) > 1)


def find_couplings(graph_module: fx.GraphModule, shapes: Mapping[str, Shape]) -> Couplings:
    """Follow all neurons through a canonical graph.

    Args:
        shapes: of every node's value by its path, with the batch; the input's under `INPUT`.
    """
    return _Follower(graph_module, shapes).run()


class _Follower:
    """One walk through the graph."""

    def __init__(self, graph_module: fx.GraphModule, shapes: Mapping[str, Shape]) -> None:
        self._graph_module, self._shapes = graph_module, shapes
        self._labels: dict[str, Tensor] = {}
        self._neurons: dict[str, Tensor] = {}
        self._gates: set[str] = set()
        self._balances: list[Balance] = []
        self._group = DisjointSets()

    def run(self) -> Couplings:
        for node in self._graph_module.graph.nodes:
            if node.op == "placeholder":
                rank = len(self._shapes[str(node.target)]) - 1
                self._labels[str(node.target)] = torch.full([1] * rank, FIXED)
            elif node.op == "output":
                self._fix(self._labels[node.args[0].target])
            else:
                sources = [str(source.target) for source in node.args]
                layer = self._graph_module.get_submodule(node.target)
                self._labels[node.target] = _compressed(self._through(layer, node.target, sources))
        self._fix_whole_producers()
        return Couplings(
            self._labels, self._neurons, self._group.roots(), self._gates_with_a_trunk(), tuple(self._balances)
        )

    def _through(self, layer: nn.Module, path: str, sources: list[str]) -> Tensor:
        """Labels of a layer's output."""
        source, labels, rank = sources[0], self._labels[sources[0]], len(self._shapes[path]) - 1
        if is_depthwise(layer):
            channels = self._along(labels, source, 0)
            return _placed(channels.repeat_interleave(self._shapes[path][1] // len(channels)), 0, rank)
        if is_producer(layer):
            return self._produced(layer, path, source)
        if isinstance(layer, Attention):
            return self._attended(labels)
        if isinstance(layer, Scatter):
            return self._scattered(layer, source)
        if isinstance(layer, Reshape) and _same_but_for_ones(self._shapes[source], self._shapes[path]):
            moved: Tensor = layer(labels.expand(self._shapes[source][1:])[None])[0]
            return moved
        if isinstance(layer, MIXERS) or _takes_some_neurons(layer, labels):
            self._fix(labels)
            return torch.full([1] * rank, FIXED)
        if isinstance(layer, NORMS) or (isinstance(layer, nn.PReLU) and layer.num_parameters > 1):
            self._along(labels, source, 0)
        if isinstance(layer, (*NORMS, *POOLS, *ACTIVATIONS, *LEARNED, Affine)):
            return labels
        if isinstance(layer, Add | Subtract | Multiply):
            return self._joined(layer, *sources)
        if isinstance(layer, Concat):
            return self._concatenated(layer.dim, sources)
        return self._moved(layer, source)

    def _produced(self, layer: nn.Module, path: str, source: str) -> Tensor:
        """Fresh labels; what the layer reads is checked for being separable along its input dimension."""
        convolves = isinstance(layer, CONVOLUTIONS)
        read = self._along(self._labels[source], source, 0 if convolves else -1)
        heads = isinstance(layer, QueryKeyValue)
        fresh = self._group.add(layer.num_heads if heads else len(layer.get_parameter("weight")))  # type: ignore[arg-type]
        self._neurons[path] = fresh
        if heads:
            features = fresh.repeat_interleave(layer.head_dim).repeat(3)  # type: ignore[arg-type]
            return _placed(features, -1, len(self._shapes[path]) - 1)
        if convolves and layer.groups > 1:  # type: ignore[operator]
            for labels in (read, fresh):
                self._balances.append(Balance(path, layer.groups, labels))  # type: ignore[arg-type]
        return _placed(fresh, 0 if convolves else -1, len(self._shapes[path]) - 1)

    def _attended(self, projected: Labels) -> Labels:
        """An attention keeps its heads apart, where queries, keys and contents belong to the same ones."""
        parts = projected.chunk(3, dim=-1)
        if len(parts) == 3 and all(torch.equal(part, parts[0]) for part in parts):
            return parts[0]
        self._fix(projected)
        return torch.full([1] * projected.ndim, FIXED)

    def _along(self, labels: Tensor, path: str, dim: int) -> Tensor:
        """The labels along one dimension; they are fixed if they change along another one too."""
        shape = self._shapes[path][1:]
        dim %= len(shape)
        if any(size > 1 for other, size in enumerate(labels.shape) if other != dim):
            self._fix(labels)
            return torch.full([shape[dim]], FIXED)
        return labels.reshape(-1).expand(shape[dim])

    def _joined(self, layer: nn.Module, one: str, other: str) -> Tensor:
        """Labels that meet are coupled; those of a value that is broadcast along the other's neurons are fixed."""
        trunk, branch = one, other
        if isinstance(layer, Multiply) and self._is_gate(one, other):
            trunk, branch = other, one
        first, second = self._labels[trunk], self._labels[branch]
        rank = max(first.ndim, second.ndim)
        first, second = (labels.view([1] * (rank - labels.ndim) + list(labels.shape)) for labels in (first, second))
        sizes, other_sizes = (self._aligned(path, rank) for path in (trunk, branch))
        for here, there, own in ((first, second, other_sizes), (second, first, sizes)):
            varies = [dim for dim, size in enumerate(here.shape) if size > 1]
            if any(own[dim] == 1 for dim in varies):
                self._fix(there)
                return here
        met: tuple[Tensor, Tensor] = torch.broadcast_tensors(first, second)
        self._group.couple(torch.stack([labels.flatten() for labels in met]).unique(dim=1))
        if isinstance(layer, Multiply) and self._is_gate(branch, trunk):
            self._gates |= self._producers(second) - self._producers(first)
        return met[0]

    def _is_gate(self, path: str, trunk: str) -> bool:
        """Whether a factor scales the other: it is smaller, or it alone comes from a squashing function."""
        sizes = [torch.Size(self._shapes[name][1:]).numel() for name in (path, trunk)]
        squashed = [self._squashed(name) for name in (path, trunk)]
        return bool(sizes[0] < sizes[1] or (sizes[0] == sizes[1] and squashed == [True, False]))

    def _squashed(self, path: str) -> bool:
        return path != INPUT and isinstance(
            self._graph_module.get_submodule(path), nn.Sigmoid | nn.Hardsigmoid | nn.Tanh | nn.Hardtanh
        )

    def _aligned(self, path: str, rank: int) -> Shape:
        shape = self._shapes[path][1:]
        return (*[1] * (rank - len(shape)), *shape)

    def _producers(self, labels: Tensor) -> set[str]:
        present = set(labels.unique().tolist())
        return {path for path, neurons in self._neurons.items() if present & set(neurons.tolist())}

    def _scattered(self, layer: Scatter, source: str) -> Labels:
        """What is left of a branch keeps its labels; the zeros around it get fresh ones, of no producer."""
        labels = self._labels[source]
        dim = layer.dim % (labels.ndim + 1) - 1
        placed = _placed(self._group.add(layer.size), dim, labels.ndim)
        return placed.index_copy(
            dim, layer.index, labels.expand([len(layer.kept) if d == dim else 1 for d in range(labels.ndim)])
        )

    def _concatenated(self, dim: int, sources: list[str]) -> Tensor:
        """Side by side; neurons along another dimension are those of all branches, which are coupled."""
        shapes = [self._shapes[source][1:] for source in sources]
        dim = dim % (len(shapes[0]) + 1) - 1
        if any(size > 1 for source in sources for d, size in enumerate(self._labels[source].shape) if d != dim):
            for source in sources:
                if self._labels[source].shape[dim] > 1:
                    self._fix(self._labels[source])
            together: tuple[Tensor, ...] = torch.broadcast_tensors(
                *[self._labels[source].narrow(dim, 0, 1) for source in sources]
            )
            for other in together[1:]:
                self._group.couple(torch.stack([together[0].flatten(), other.flatten()]).unique(dim=1))
            return together[0]
        sizes = torch.broadcast_shapes(
            *[(*labels.shape[:dim], 1, *labels.shape[dim + 1 :]) for labels in map(self._labels.get, sources)]  # type: ignore[union-attr]
        )
        return torch.cat(
            [
                self._labels[source].expand([*sizes[:dim], shape[dim], *sizes[dim + 1 :]])
                for source, shape in zip(sources, shapes, strict=True)
            ],
            dim,
        )

    def _moved(self, layer: nn.Module, source: str) -> Tensor:
        """Layers that only move values move the labels alike."""
        labels = self._labels[source]
        if isinstance(layer, Mean):
            rank = labels.ndim + 1
            dims = [dim % rank - 1 for dim in layer.dims]
            if any(labels.shape[dim] > 1 for dim in dims):
                self._fix(labels)
                labels = torch.full([1] * labels.ndim, FIXED)
            return (
                labels
                if layer.keepdim
                else labels[tuple(0 if dim in dims else slice(None) for dim in range(labels.ndim))]
            )
        if isinstance(layer, Narrow):
            return labels
        if isinstance(layer, nn.Flatten | Select):
            labels = labels.expand(self._shapes[source][1:])
        moved: Tensor = layer(labels[None])[0]
        return moved

    def _fix(self, labels: Tensor) -> None:
        present = labels.unique()
        self._group.couple(torch.stack([present, torch.full_like(present, FIXED)]))

    def _gates_with_a_trunk(self) -> frozenset[str]:
        """Gates that follow another producer in all of their neurons; two that scale each other are no gates."""
        roots = self._group.roots()
        trunks = [roots[neurons] for path, neurons in self._neurons.items() if path not in self._gates]
        led = torch.zeros_like(roots, dtype=torch.bool)
        led[torch.cat(trunks)] = True
        return frozenset(path for path in self._gates if bool(led[roots[self._neurons[path]]].all()))

    def _fix_whole_producers(self) -> None:
        """A producer of which one neuron has to stay keeps all: it is no sliceable layer."""
        fixed = -1
        roots = self._group.roots()
        while fixed != int((roots == FIXED).sum()):
            fixed = int((roots == FIXED).sum())
            for neurons in self._neurons.values():
                if bool((roots[neurons] == FIXED).any()):
                    self._fix(neurons)
            roots = self._group.roots()


def _compressed(labels: Tensor) -> Tensor:
    """Dimensions along which nothing changes get size one."""
    for dim in range(labels.ndim):
        first = labels.narrow(dim, 0, 1)
        if labels.shape[dim] > 1 and bool((labels == first).all()):
            labels = first
    return labels


def _placed(labels: Int64[Tensor, " places"], dim: int, rank: int) -> Labels:
    """Labels along one dimension of a value."""
    sizes = [1] * rank
    sizes[dim] = len(labels)
    return labels.reshape(sizes)


def _same_but_for_ones(one: Shape, other: Shape) -> bool:
    return [size for size in one[1:] if size > 1] == [size for size in other[1:] if size > 1]


def _takes_some_neurons(layer: nn.Module, labels: Labels) -> bool:
    """Whether a pool, or a part of a dimension, is taken along the neurons themselves."""
    if isinstance(layer, POOLS):
        return any(size > 1 for size in labels.shape[-(2 if type(layer).__name__.endswith("2d") else 1) :])
    return isinstance(layer, Narrow | Select) and labels.shape[layer.dim % (labels.ndim + 1) - 1] > 1
