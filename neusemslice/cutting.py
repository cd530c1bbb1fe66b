"""What a choice of neurons leaves of every value in the network: the one truth of masking and removal."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, fx

from neusemslice.config import Branches
from neusemslice.coupling import Couplings
from neusemslice.errors import SliceMismatchError
from neusemslice.tracing import SliceableLayer, SliceableModel


@dataclass(frozen=True, eq=False)
class Cut:
    """What is left of a model.

    Attributes:
        model: whose neurons were chosen.
        kept: for each label of the couplings, whether its neuron stays.
        scattered: layers whose own branch loses more neurons than the sum it is added to, with those that it keeps.
    """

    model: SliceableModel
    kept: Bool[Tensor, " labels"]
    scattered: Mapping[str, Bool[Tensor, " _"]]

    def present(self, path: str) -> Bool[Tensor, "..."]:
        """For each place of a sample's value after a layer, whether it is left; in the sizes of the labels."""
        return self._kept_on(self._branch_of.get(path))[self.model.couplings.labels[path]]

    def neurons(self, layer: str) -> Bool[Tensor, " _"]:
        """Which neurons a layer still computes."""
        return self._kept_on(layer if layer in self.scattered else None)[self.model.couplings.neurons[layer]]

    def joined(self, path: str) -> Bool[Tensor, "..."]:
        """The same after the end of a scattered branch, as the sum needs it."""
        return self.kept[self.model.couplings.labels[path]]

    def read_by(self, node: fx.Node) -> Bool[Tensor, "..."]:
        """What is left of the value that a layer reads; of the first one, where it reads several."""
        source = str(node.args[0].target)  # type: ignore[union-attr]
        ends = {self.model.layer(name).branch[-1] for name in self.scattered}
        return self.joined(source) if source in ends else self.present(source)

    @property
    def _branch_of(self) -> dict[str, str]:
        return {path: name for name in self.scattered for path in self.model.layer(name).branch}

    def _kept_on(self, layer: str | None) -> Bool[Tensor, " labels"]:
        if layer is None:
            return self.kept
        kept = self.kept.clone()
        kept[self.model.couplings.neurons[layer]] &= self.scattered[layer]
        return kept


def cut_neurons(model: SliceableModel, keep: Mapping[str, Bool[Tensor, " _"]], branches: Branches = "union") -> Cut:
    """Which neurons stay when each layer asks for its own: coupled ones stay if any of them is asked for.

    Layers that are not named ask for all of theirs; gates ask for nothing. Grouped convolutions keep equally many in
    each of their groups: as many as the group that asks for most, filled up in the order of the neurons.

    Raises:
        SliceMismatchError: `keep` names a layer or a number of neurons that the model does not have.
    """
    couplings = model.couplings
    asked = {layer.name: mask.cpu() for layer, mask in check_keep(model, keep)}
    wanted = torch.ones(len(couplings.group_of), dtype=torch.bool)  # what is no sliceable layer's has to stay
    groups = {layer.name: couplings.group_of[couplings.neurons[layer.name]] for layer in model.sliceable_layers}
    wanted[torch.cat(list(groups.values()))] = False
    for name, own in groups.items():
        wanted[own[asked[name]] if name in asked else own] = True
    _balance(couplings, wanted)
    kept = wanted[couplings.group_of]
    scattered = {}
    if branches == "scatter":
        for name in model.branches:
            left = kept[couplings.neurons[name]]
            if name in asked and bool((left & ~asked[name]).any()):
                scattered[name] = left & asked[name]
    return Cut(model, kept, scattered)


def check_keep(
    model: SliceableModel, keep: Mapping[str, Bool[Tensor, " _"]]
) -> list[tuple[SliceableLayer, Bool[Tensor, " _"]]]:
    """The layers that `keep` names, with their masks.

    Raises:
        SliceMismatchError: a layer is unknown, a mask has another length than the layer has neurons, or keeps none.
    """
    layers = {layer.name: layer for layer in model.sliceable_layers}
    checked = []
    for name, mask in keep.items():
        fits = isinstance(mask, Tensor) and mask.dtype == torch.bool and name in layers
        if not fits or mask.shape != (layers[name].neurons,):
            offered = f"{layers[name].neurons} neurons" if name in layers else f"no such layer among {list(layers)}"
            given = (
                f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            )
            raise SliceMismatchError(
                f"The keep mask of {name!r} is {given}; the model has {offered}.",
                hint="Give a boolean for each neuron of a sliceable layer.",
            )
        if not bool(mask.any()):
            raise SliceMismatchError(f"The keep mask of {name!r} keeps no neuron.", hint="Keep at least one.")
        checked.append((layers[name], mask))
    return checked


def _balance(couplings: Couplings, wanted: Bool[Tensor, " labels"]) -> None:
    """Ask for more neurons, in place, until each grouped convolution has as many in each of its groups."""
    changed = True
    while changed:
        changed = False
        for balance in couplings.balances:
            groups = couplings.group_of[balance.labels].view(balance.groups, -1)
            counts = wanted[groups].sum(1)
            for group, count in zip(groups, counts.tolist(), strict=True):
                missing = int(counts.max()) - count
                if missing:
                    wanted[group[~wanted[group]][:missing]] = True
                    changed = True
