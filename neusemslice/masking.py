"""The network with some neurons silenced, of unchanged size."""

from collections.abc import Mapping

from jaxtyping import Bool
from torch import Tensor, fx, nn

from neusemslice.config import Branches
from neusemslice.copying import copy_graph, unbound
from neusemslice.cutting import Cut, cut_neurons
from neusemslice.roles import is_producer
from neusemslice.tracing import SliceableModel

_MASK = "neuron_mask"


class NeuronMask(nn.Module):
    """Sets the neurons that are not kept to zero."""

    keep: Tensor

    def __init__(self, keep: Bool[Tensor, "..."]) -> None:
        super().__init__()
        self.register_buffer("keep", keep)

    def forward(self, value: Tensor) -> Tensor:
        """`value` is [batch, *shape], and `keep` has that shape or is broadcast to it."""
        return value * self.keep


def mask_neurons(
    model: SliceableModel, keep: Mapping[str, Bool[Tensor, " _"]], branches: Branches = "union"
) -> fx.GraphModule:
    """A copy of the network in which only the kept neurons speak: the others are zero for every layer that reads them.

    Args:
        keep: a mask for layers by name; layers that are not named stay whole.
        branches: what happens where branches are added up, see `neusemslice.config.Branches`.

    Raises:
        SliceMismatchError: `keep` names a layer or a number of neurons that the model does not have.
    """
    return silence(cut_neurons(model, keep, branches), copy_graph(model.graph_module))


def silence(cut: Cut, masked: fx.GraphModule) -> fx.GraphModule:
    """`masked`, a copy of the cut's model, with masks in it."""
    model = cut.model
    nodes = {node.target: node for node in masked.graph.nodes if node.op == "call_module"}
    places = [(nodes[model.layer(name).branch[-1]], None) for name in cut.scattered]
    places += [(node.args[0], node) for node in nodes.values() if is_producer(masked.get_submodule(node.target))]
    number = 0
    for value, reader in places:
        present = cut.present(str(value.target))
        if bool(present.all()):
            continue
        name, number = f"{_MASK}_{number}", number + 1
        masked.add_submodule(name, NeuronMask(present.to(model.device)))
        with masked.graph.inserting_after(value):
            silenced = masked.graph.call_module(name, (value,))
        value.replace_all_uses_with(
            silenced, delete_user_cb=lambda user, new=silenced, only=reader: user is not new and only in (None, user)
        )
    masked.recompile()
    return unbound(masked)
