"""Learning a further task, without the samples of the earlier ones."""

import time
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from neusemslice.batches import Batches
from neusemslice.copying import copy_graph
from neusemslice.increment_config import IncrementConfig
from neusemslice.increments.checks import check_request, new_categories, require_capacity
from neusemslice.increments.heads import Task, grow_head, traced, whole_task
from neusemslice.increments.measuring import Judge, forgetting, outputs_on
from neusemslice.increments.memory import IncrementMemory
from neusemslice.increments.ownership import free_parameters
from neusemslice.increments.remembering import Remembering
from neusemslice.increments.report import FreeNeurons, Incremented, IncrementReport
from neusemslice.increments.samples import samples_of
from neusemslice.increments.settling import entries_of
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.tracing import SliceableModel
from neusemslice.training import Batch, Joined, Loss, Samples, Training, as_samples, cross_entropy, logits_of, train

TRAINING_FILE = "training.safetensors"


def learn_increment(
    model: SliceableModel,
    old: Batches | None,
    new: Batches,
    config: IncrementConfig | None = None,
    *,
    memory: IncrementMemory | None = None,
    evaluation: Batches | None = None,
    checkpoint: Path | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> Incremented:
    """Teach a network further categories (paper, section 4.3), as outputs beside those that it has.

    The network may be any that ends in a linear layer, or what an earlier increment returned, with its memory. With
    the method `isolated`, what it gives for earlier tasks is the same to the last bit before and after the training.

    Args:
        old: re-iterable batches of the training samples of what the network knows, for its first increment: critical
            neurons are found and exemplars chosen from them. With a memory there is nothing to give, nor for `retrain`.
        new: re-iterable batches of the new task, whose labels go on from the network's categories without a gap.
        memory: of the increment that made `model`, of the same method.
        evaluation: batches of samples of all tasks that the accuracies are measured on, also after each epoch.
        checkpoint: an existing folder that the increment goes on from after an interruption.

    Raises:
        ConfigError: old samples are missing or superfluous, or the memory is of another method.
        DatasetError: data does not fit the model, or new labels overlap the old ones or leave a gap.
        UnsupportedModelError: the network's outputs cannot grow.
        SliceMismatchError: the memory belongs to another model.
        CapacityError: with `isolated`, no neuron is free for the new task.
        DivergedError: the loss became NaN or infinite; `error.network` is the network after the last good epoch.
        CheckpointError: the folder holds another increment.
        StoppedError: should_stop() returned true.
    """
    started = time.perf_counter()
    config = config or IncrementConfig()
    check_request(model, old, memory, config)
    known = (whole_task(model),) if memory is None else tuple(learned.task for learned in memory.tasks)
    task_size = new_categories(new, model.categories)
    network = copy_graph(model.graph_module)
    head = grow_head(network, model.logits_node, task_size, config.seed)
    task, grown = Task(model.categories, task_size, (head,)), traced(network, model)
    network = grown.graph_module
    lesson = as_samples(new, grown)
    judge = (
        None
        if evaluation is None
        else Judge(samples_of(evaluation, grown), (*known, task), network, config.training.batch_size)
    )
    remembering = Remembering(grown, config, on_progress, should_stop)
    if memory is None:
        first = None if old is None else as_samples(old, model)
        memory = remembering.first(known[0], first, None if judge is None else judge.before[known[0]], checkpoint)
    if config.isolates:
        require_capacity(grown, head, memory.tasks[-1].kept or {})
    probe = lesson if judge is None else judge.samples
    reference = outputs_on(network, probe, task.first, config.training.batch_size)
    training = _train(grown, memory, task, lesson, judge, remembering, checkpoint)
    memory = remembering.further(memory, task, lesson, None if judge is None else judge.with_task(network, task))
    finished = traced(network, model)
    drift = float((outputs_on(network, probe, task.first, config.training.batch_size) - reference).abs().max())
    memory = memory.of_model(finished)
    progress = Progress(on_progress, should_stop)
    accuracies = () if judge is None else judge.judge(finished, memory, progress)
    progress.report("evaluate", 1, 1)
    free = free_parameters(network, entries_of(finished, memory.tasks))
    report = IncrementReport(
        method=config.method,
        categories=(model.categories, finished.categories),
        accuracies=accuracies,
        forgetting=forgetting(memory, accuracies),
        drift=drift,
        bytes_kept=memory.bytes_kept(),
        capacity=_capacity(finished, memory),
        free_parameters=sum(int(mask.sum()) for mask in free.values()),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        training=training,
        seconds=time.perf_counter() - started,
    )
    return Incremented(network.requires_grad_(requires_grad=True), finished, memory, report)


def _train(
    model: SliceableModel,
    memory: IncrementMemory,
    task: Task,
    lesson: Samples,
    judge: Judge | None,
    remembering: Remembering,
    checkpoint: Path | None,
) -> Training:
    """Train what is free on the new task."""
    config, network = remembering.config, model.graph_module
    samples = lesson if memory.exemplars is None else Joined([lesson, memory.exemplars])
    return train(
        network,
        samples,
        config.training,
        loss=_among_own(task) if config.isolates else cross_entropy,
        trainable=free_parameters(network, entries_of(model, memory.tasks)) if config.freezes else None,
        measure=None if judge is None else judge.after_an_epoch,
        checkpoint=None if checkpoint is None else checkpoint / TRAINING_FILE,
        on_progress=remembering.on_progress,
        should_stop=remembering.should_stop,
    )


def _among_own(task: Task) -> Loss:
    """Cross entropy among the new task's categories: the others' outputs cannot answer to it."""

    def loss(network: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        return functional.cross_entropy(task.of(logits_of(network, batch.inputs)), batch.labels - task.first)

    return loss


def _capacity(model: SliceableModel, memory: IncrementMemory) -> dict[str, FreeNeurons]:
    """The neurons of each layer that no task needs; all of them where nothing is frozen."""
    kept = memory.tasks[-1].kept or {}
    return {
        layer.name: FreeNeurons(int((~kept[layer.name]).sum()) if layer.name in kept else layer.neurons, layer.neurons)
        for layer in model.sliceable_layers
    }
