"""`neusemslice increment`: a network on files learns further categories, without a service."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neusemslice.errors import ConfigError
from neusemslice.increment_config import (
    DEFAULT_DIRECTIONS,
    DEFAULT_THRESHOLD,
    STRATEGIES,
    IncrementConfig,
    IncrementMethod,
)
from neusemslice_cli.files import (
    BatchSize,
    Fraction,
    Metric,
    Model,
    Preprocessing,
    Seed,
    Threshold,
    Weights,
    json_object,
    load,
    opened,
    progress_bar,
    require_folder,
)

if TYPE_CHECKING:
    from neusemslice import Incremented
    from neusemslice.data import Dataset
    from neusemslice.data.dataset import Batches

Old = Annotated[
    Path | None,
    typer.Option("--data", help="What the network knows: for its first increment, and to measure accuracies on."),
]
New = Annotated[Path, typer.Option("--new", help="The new task; of the same form as --data.")]
Labels = Annotated[
    str, typer.Option(help="Which labels of --data are the network's outputs, in this order: 0,1,2. Default: all.")
]
NewLabels = Annotated[str, typer.Option(help="Which labels of --new belong to the task. Default: all.")]
Method = Annotated[IncrementMethod, typer.Option(help="What becomes of what earlier tasks need.")]


def increment_files(
    model: Model,
    new: New,
    data: Old = None,
    output: Annotated[Path, typer.Option(help="Where the larger checkpoint goes.")] = Path("incremented.safetensors"),
    memory_output: Annotated[Path, typer.Option(help="Where the memory goes.")] = Path("memory.safetensors"),
    memory: Annotated[
        Path | None, typer.Option(help="The memory of the increment that made the network, to go on from it.")
    ] = None,
    weights: Weights = None,
    preprocess: Preprocessing = "{}",
    labels: Labels = "",
    new_labels: NewLabels = "",
    method: Method = "isolated",
    metric: Metric = "taylor",
    threshold: Threshold = None,
    fraction: Fraction = None,
    replay_fraction: Annotated[float | None, typer.Option(help="Of the samples, for replay. Default 0.1.")] = None,
    directions: Annotated[int, typer.Option(help="How finely tasks are told apart.")] = DEFAULT_DIRECTIONS,
    training: Annotated[
        str, typer.Option(help='JSON: {"epochs", "learning_rate", "batch_size", "optimizer", ...}.')
    ] = "{}",
    seed: Seed = 0,
    batch_size: BatchSize = 256,
) -> None:
    """Teach a network on files further categories, without the samples of earlier ones."""
    from neusemslice import IncrementMemory, learn_increment
    from neusemslice.increments import Together

    cut = {"threshold": threshold, "fraction": fraction}
    config = IncrementConfig.from_dict(
        {
            "method": method,
            "slicing": _slicing(method, metric, cut, seed),
            "training": {"seed": seed, **json_object("training", training)},
            "replay_fraction": replay_fraction,
            "decision_directions": directions,
            "seed": seed,
        }
    )
    chosen, new_chosen = _labels("labels", labels), _labels("new-labels", new_labels)
    for path in (output, memory_output):
        require_folder(path)
    network = load(model, weights)
    before = None if memory is None else IncrementMemory.load(memory)
    with ExitStack() as stack:
        later = stack.enter_context(opened(new, preprocess))
        known = None if data is None else stack.enter_context(opened(data, preprocess))
        numbers = new_chosen or list(range(later.facts.categories))

        def old_batches(dataset: "Dataset", split: str) -> "Batches":
            batches = dataset.batches(_split(dataset, split), batch_size)
            return batches.numbered(chosen) if chosen else batches

        def new_batches(split: str) -> "Batches":
            return later.batches(_split(later, split), batch_size).numbered(numbers, first=network.categories)

        needed = before is None and method != "retrain"
        found = learn_increment(
            network,
            old_batches(known, "train") if needed and known is not None else None,
            new_batches("train"),
            config,
            memory=before,
            evaluation=None if known is None else Together([old_batches(known, "test"), new_batches("test")]),
            on_progress=stack.enter_context(progress_bar()),
        )
    found.save(output, memory_output)
    _show(found)
    typer.echo(f"written: {output}, {memory_output}")


def _show(found: "Incremented") -> None:
    report = found.report
    typer.echo(f"outputs: {report.categories[0]} before, {report.categories[1]} now")
    for number, task in enumerate(report.accuracies):
        shown = {name: getattr(task, name) for name in ("before", "with_task", "vote", "task_free", "through_slice")}
        text = ", ".join(f"{name} {value:.2%}" for name, value in shown.items() if value is not None)
        typer.echo(f"task {number}: {text}")
    typer.echo(f"drift of earlier outputs: {report.drift:.3g}")
    typer.echo(f"kept: {sum(report.bytes_kept.values()):,} bytes")
    for layer, left in report.capacity.items():
        typer.echo(f"{layer:24} {left.free:6} of {left.neurons:6} neurons are free")


def _slicing(method: str, metric: str, cut: dict[str, float | None], seed: int) -> dict[str, object] | None:
    """None, for the defaults, unless a cut is given."""
    given = {name: value for name, value in cut.items() if value is not None}
    if not given and metric == "taylor":
        return None
    strategy = STRATEGIES.get(method, "semantic")
    if not given and strategy == "semantic":
        given = {"threshold": DEFAULT_THRESHOLD}
    return {"strategy": strategy, "metric": metric, "seed": seed, **given}


def _split(dataset: "Dataset", wanted: str) -> str:
    return wanted if wanted in dataset.splits else "train"


def _labels(field: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",") if word.strip()]
    except ValueError as error:
        raise ConfigError(
            f"--{field} is {text!r}.", field=field, hint="Give whole numbers separated by commas, such as 0,1,2."
        ) from error
