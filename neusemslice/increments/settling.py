"""What happens to a task once it is learned: its critical neurons are found and, from then on, stay as they are."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from neusemslice.increment_config import IncrementConfig
from neusemslice.increments.heads import Task, task_view, whole_task
from neusemslice.increments.isolating import isolate
from neusemslice.increments.memory import Learned
from neusemslice.increments.ownership import Entries, critical_neurons, cut_of, merged, own_entries
from neusemslice.increments.samples import Relabelled, first_of_each
from neusemslice.progress import Progress
from neusemslice.slicing import slice_model
from neusemslice.tracing import SliceableModel
from neusemslice.training import Samples, batches_of

CALIBRATION_PER_CATEGORY = 200
"""Samples of each category that critical neurons which are cut loose are refitted on."""


def settle(
    model: SliceableModel,
    task: Task,
    samples: Samples,
    before: Sequence[Learned],
    config: IncrementConfig,
    progress: Progress,
) -> dict[str, Bool[Tensor, " _"]]:
    """The neurons that a task needs, those of earlier ones included; with `config.isolates` they are cut loose.

    Args:
        model: its network is changed in place where neurons are cut loose.
        samples: of the task alone, with the network's labels.
        before: the tasks that are settled already.
    """
    view = task_view(model, task)
    own = Relabelled(samples, task)
    batches = batches_of(own, config.training.batch_size)
    found = slice_model(
        view, batches, config.slicing, on_progress=progress.on_progress, should_stop=progress.should_stop
    )
    critical = critical_neurons(found)
    if before:
        critical = merged(critical, before[-1].kept or {})
    cut = cut_of(view, critical)
    kept = {layer: cut.neurons(layer) & mask.any() for layer, mask in critical.items()}
    if config.isolates:
        owned = entries_of(model, before)
        few = batches_of(first_of_each(own, CALIBRATION_PER_CATEGORY), config.training.batch_size)
        isolate(model.graph_module, view, kept, owned, few, config.reconstruct, progress)
    return kept


def entries_of(model: SliceableModel, tasks: Sequence[Learned]) -> Entries:
    """All entries of the model's tensors that belong to settled tasks, their outputs included."""
    if not tasks or tasks[-1].kept is None:
        return {}
    owned = own_entries(model, tasks[-1].kept)
    own_heads = {path for learned in tasks for path in learned.task.heads}
    strangers = set(whole_task(model).heads) - own_heads
    return {
        name: torch.zeros_like(mask) if name.rpartition(".")[0] in strangers else mask for name, mask in owned.items()
    }
