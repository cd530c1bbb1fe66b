"""What can be known to go wrong before any work."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from neusemslice.batches import Batches, as_pair, require_reiterable
from neusemslice.data.dataset import Batches as DatasetBatches
from neusemslice.errors import CapacityError, ConfigError, DatasetError
from neusemslice.increment_config import IncrementConfig
from neusemslice.increments.deciding import check_memory
from neusemslice.increments.memory import IncrementMemory
from neusemslice.increments.ownership import cut_of
from neusemslice.tracing import SliceableModel


def check_request(
    model: SliceableModel, old: Batches | None, memory: IncrementMemory | None, config: IncrementConfig
) -> None:
    """Refuse samples that are missing or superfluous, and a memory of something else.

    Raises:
        ConfigError, SliceMismatchError: see `learn_increment`.
    """
    if memory is not None:
        check_memory(model, memory)
        if memory.method != config.method:
            raise ConfigError(
                f"The memory is of method={memory.method!r}, the config asks for {config.method!r}.",
                field="method",
                hint="Go on with the method that the increments began with.",
            )
    needed = memory is None and config.method != "retrain"
    if needed and old is None:
        raise ConfigError(
            f"method={config.method!r} needs samples of what the network knows, and there are none.",
            field="old",
            hint="Pass the old training samples, or the memory of the increment that made this network.",
        )
    if not needed and old is not None:
        raise ConfigError(
            "There are old samples, and nothing looks at them.",
            field="old",
            hint="Leave them out: the memory has what is needed." if memory else "Leave them out for method='retrain'.",
        )


def new_categories(data: Batches, known: int) -> int:
    """How many categories the labels of new samples bring.

    Raises:
        DatasetError: they overlap those that are known, or leave a gap.
    """
    require_reiterable(data)
    present: set[int] = set()
    if isinstance(data, DatasetBatches):
        present = set(data.labels[data.rows].tolist())
    else:
        for number, batch in enumerate(data):
            _, labels = as_pair(batch, number)
            if labels.is_floating_point() or labels.ndim != 1:
                raise DatasetError(
                    f"The labels of batch {number} are {labels.dtype} of shape {tuple(labels.shape)}.",
                    hint="Give one whole number, the category, for each sample.",
                )
            present |= set(labels.tolist())
    if not present:
        raise DatasetError("The new task has no samples.", hint="Pass at least one batch.")
    if min(present) < known:
        overlapping = sorted(label for label in present if label < known)
        raise DatasetError(
            f"The new task's labels overlap those that the network knows, 0 to {known - 1}: {overlapping}.",
            hint=f"Number the new categories from {known} on.",
        )
    if present != set(range(known, max(present) + 1)):
        missing = min(set(range(known, max(present) + 1)) - present)
        raise DatasetError(
            f"The new task's labels go up to {max(present)}, but no sample has the label {missing}.",
            hint=f"Number the new categories from {known} on, without a gap.",
        )
    return max(present) + 1 - known


def require_capacity(model: SliceableModel, head: str, kept: Mapping[str, Bool[Tensor, " _"]]) -> None:
    """Raises CapacityError if every value that the outputs read belongs to earlier tasks.

    Args:
        head: the new task's linear layer.
        kept: the neurons of earlier tasks.
    """
    (node,) = model.graph_module.graph.find_nodes(op="call_module", target=head)
    if bool(cut_of(model, kept).read_by(node).all()):
        full = [layer for layer, mask in kept.items() if bool(torch.all(mask))]
        raise CapacityError(
            "No free neuron reaches the outputs: all that they read is needed for earlier tasks ("
            f"layers without a free neuron: {', '.join(full) or 'none; the last layers cannot lose neurons'}).",
            hint="Lower the slicing's cut, or use the method retrain or replay.",
        )
