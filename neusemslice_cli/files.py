"""`neusemslice slice | restructure | evaluate`: the library on files, without a service."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from neusemslice.config import (
    CALIBRATION_PER_CATEGORY,
    Branches,
    MetricName,
    Reconstruction,
    SlicingConfig,
    StrategyName,
)
from neusemslice.errors import ConfigError
from neusemslice.progress import OnProgress
from neusemslice.pruning_config import PruningMethod

if TYPE_CHECKING:
    from neusemslice import SliceableModel
    from neusemslice.data import Dataset

VALIDATION_SHARE = 0.1
Model = Annotated[Path, typer.Argument(help="A checkpoint (.safetensors), or an architecture (.json) with --weights.")]
Weights = Annotated[Path | None, typer.Option(help="Weights for an architecture: safetensors or a state dict.")]
Data = Annotated[Path, typer.Option(help=".npz, .safetensors, or an archive of image folders.")]
Preprocessing = Annotated[str, typer.Option("--preprocess", help='JSON: {"resize", "scale", "mean", "std"}.')]
Strategy = Annotated[str, typer.Option(help=f"{', '.join(get_args(StrategyName))}.")]
Metric = Annotated[str, typer.Option(help=f"{', '.join(get_args(MetricName))}.")]
Threshold = Annotated[float | None, typer.Option(help="Coverage theta for semantic, similarity for deeparc.")]
Fraction = Annotated[float | None, typer.Option(help="Share of neurons kept, for the other strategies.")]
TargetCompression = Annotated[
    float | None, typer.Option(help="Share of the parameters to remove; the cut is searched for.")
]
TargetSize = Annotated[int | None, typer.Option(help="Most bytes of the checkpoint file; the cut is searched for.")]
TargetLatency = Annotated[
    float | None, typer.Option(help="Most milliseconds of one forward pass here; the cut is searched for by timing.")
]
LatencyBatch = Annotated[int, typer.Option(min=1, help="Samples of that pass.")]
MaxAccuracyDrop = Annotated[
    float | None,
    typer.Option(help="Accuracy that may be lost; the cut is searched for on a tenth of the train split, held out."),
]
Increment = Annotated[int, typer.Option(min=1, help="Step of the scan, for semantic.")]
Seed = Annotated[int, typer.Option(help="Orders what is random.")]
BatchSize = Annotated[int, typer.Option(min=1)]


def slice_files(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option(help="Where the slice goes.")] = Path("slice.safetensors"),
    weights: Weights = None,
    preprocess: Preprocessing = "{}",
    strategy: Strategy = "semantic",
    metric: Metric = "taylor",
    threshold: Threshold = None,
    fraction: Fraction = None,
    target_compression: TargetCompression = None,
    target_size_bytes: TargetSize = None,
    target_latency_ms: TargetLatency = None,
    latency_batch_size: LatencyBatch = 1,
    max_accuracy_drop: MaxAccuracyDrop = None,
    increment: Increment = 1,
    seed: Seed = 0,
    batch_size: BatchSize = 256,
) -> None:
    """Find the critical neurons of a network on files."""
    from neusemslice import slice_model

    config = SlicingConfig.from_dict(
        {
            "strategy": strategy,
            "metric": metric,
            "threshold": threshold,
            "fraction": fraction,
            "target_compression": target_compression,
            "target_size_bytes": target_size_bytes,
            "target_latency_ms": target_latency_ms,
            "latency_batch_size": latency_batch_size,
            "max_accuracy_drop": max_accuracy_drop,
            "increment": increment,
            "seed": seed,
        }
    )
    require_folder(output)
    network = load(model, weights)
    with opened(data, preprocess) as dataset, progress_bar() as on_progress:
        train, validation = dataset.batches("train", batch_size), None
        if max_accuracy_drop is not None:
            train, validation = dataset.hold_out(VALIDATION_SHARE, batch_size, seed=seed)
        found = slice_model(network, train, config, validation=validation, on_progress=on_progress)
    found.save(output)
    for layer, keep in found.merged().items():
        typer.echo(f"{layer:24} {int(keep.sum()):6} of {keep.numel():6} neurons are critical")
    typer.echo(f"cut at {found.config.cut:.6g}")
    typer.echo(f"written: {output}")


def restructure_files(
    model: Model,
    slice_file: Annotated[Path, typer.Option("--slice", help="A slice made from this model.")],
    output: Annotated[Path, typer.Option(help="Where the smaller checkpoint goes.")] = Path("restructured.safetensors"),
    weights: Weights = None,
    cut: Annotated[float | None, typer.Option(help="Cut the slice at another theta or fraction.")] = None,
    branches: Annotated[
        Branches, typer.Option(help="Where branches are added up, whether each also loses its own neurons.")
    ] = "union",
    reconstruct: Annotated[
        Reconstruction | None,
        typer.Option(
            help="How layers that lost inputs are brought back, without training. "
            "least_squares where --data is given, else none."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Samples to reconstruct from, and for the layers that deeparc sews in.")
    ] = None,
    preprocess: Preprocessing = "{}",
    batch_size: BatchSize = 256,
    fine_tune_epochs: Annotated[int | None, typer.Option(min=1, help="Train what is left, with --data.")] = None,
    prune: Annotated[
        str | None, typer.Option(help=f"Then zero weights in iterations: {', '.join(get_args(PruningMethod))}.")
    ] = None,
    prune_amount: Annotated[float, typer.Option(help="Share of the surviving weights zeroed in each.")] = 0.1,
    prune_iterations: Annotated[int | None, typer.Option(help="Stop after so many.")] = None,
    prune_sparsity: Annotated[float | None, typer.Option(help="Stop at this share of zeros.")] = None,
    prune_max_accuracy_drop: Annotated[
        float | None, typer.Option(help="Stop before losing more; measured on a tenth of the train split, held out.")
    ] = None,
    prune_fine_tune_epochs: Annotated[int | None, typer.Option(min=1, help="Train after each iteration.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Of all training.")] = 1e-3,
    seed: Seed = 0,
    *,
    distill: Annotated[bool, typer.Option("--distill", help="Train to imitate the original network, too.")] = False,
) -> None:
    """Remove the non-critical neurons, or deeparc's redundant layers, from a network on files; train and prune it."""
    from neusemslice import ModelSlice, restructure
    from neusemslice_cli.finishing import Finishing

    require_folder(output)
    finishing = Finishing.of(
        fine_tune_epochs=fine_tune_epochs,
        method=prune,
        amount=prune_amount,
        iterations=prune_iterations,
        sparsity=prune_sparsity,
        max_accuracy_drop=prune_max_accuracy_drop,
        epochs_between=prune_fine_tune_epochs,
        learning_rate=learning_rate,
        distill=distill,
        seed=seed,
    )
    finishing.check_data(given=data is not None)
    found = ModelSlice.load(slice_file)
    network, calibration, dataset = load(model, weights), None, None
    with ExitStack() as stack:
        if data is not None:
            dataset = stack.enter_context(opened(data, preprocess))
            calibration = dataset.batches("train", batch_size, limit_per_category=CALIBRATION_PER_CATEGORY)
        cut_slice = found if cut is None else found.at(cut)
        if reconstruct is None:
            reconstruct = "none" if data is None or found.config.strategy == "deeparc" else "least_squares"
        on_progress = stack.enter_context(progress_bar())
        result = restructure(
            network,
            cut_slice,
            branches=branches,
            reconstruct=reconstruct,
            calibration=calibration,
            on_progress=on_progress,
        )
        for name, value in result.report.to_dict().items():
            typer.echo(f"{name}: {json.dumps(value)}")
        finishing.finish(network, result, dataset, batch_size, on_progress).save(output)
    typer.echo(f"written: {output}")


def evaluate_files(
    model: Model,
    data: Data,
    weights: Weights = None,
    preprocess: Preprocessing = "{}",
    split: Annotated[str, typer.Option(help="train or test.")] = "test",
    batch_size: BatchSize = 256,
) -> None:
    """Accuracy of a network on files."""
    from neusemslice import evaluate

    network = load(model, weights)
    with opened(data, preprocess) as dataset, progress_bar() as on_progress:
        evaluation = evaluate(network, dataset.batches(split, batch_size), on_progress=on_progress)
    typer.echo(json.dumps(evaluation.to_dict(), indent=2))


def require_folder(output: Path) -> None:
    """Raises ConfigError if the output could not be written at the end of the work."""
    if not output.resolve().parent.is_dir():
        raise ConfigError(f"There is no folder for {output}.", field="output", hint="Make it first.")


def load(model: Path, weights: Path | None) -> "SliceableModel":
    """The network in canonical form.

    Raises:
        ConfigError: an architecture came without weights, or a checkpoint with them.
    """
    import torch

    from neusemslice import trace
    from neusemslice.architecture import input_shape_of
    from neusemslice.checkpoint import read_checkpoint_metadata
    from neusemslice.weights import load_network

    if (model.suffix == ".json") != (weights is not None):
        wrong = "is an architecture: --weights is missing" if weights is None else "is a checkpoint, which has weights"
        raise ConfigError(
            f"{model} {wrong}.",
            field="weights",
            hint="Give a checkpoint alone, or an architecture (.json) with --weights.",
        )
    spec = json.loads(model.read_text()) if weights else read_checkpoint_metadata(model)["architecture"]
    network = load_network(spec, weights or model)
    return trace(network, torch.zeros(1, *input_shape_of(spec)))


@contextmanager
def opened(data: Path, preprocess: str) -> Iterator["Dataset"]:
    """The dataset, converted in a temporary folder.

    Raises:
        ConfigError: `preprocess` is no JSON object.
    """
    from neusemslice.data import ImportLimits, Preprocess, import_dataset, open_dataset

    try:
        values: dict[str, Any] = json.loads(preprocess)
    except ValueError as error:
        raise ConfigError(f"--preprocess is no JSON: {error}.", field="preprocess") from error
    with tempfile.TemporaryDirectory() as folder:
        canonical = Path(folder) / "dataset.safetensors"
        import_dataset(data, canonical, preprocess=Preprocess.from_dict(values), limits=ImportLimits())
        yield open_dataset(canonical)


@contextmanager
def progress_bar() -> Iterator[OnProgress]:
    """A bar on the terminal, one line for each stage."""
    from rich.progress import Progress, TaskID

    with Progress(transient=True) as bar:
        lines: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in lines:
                lines[stage] = bar.add_task(stage)
            bar.update(lines[stage], completed=done, total=total)

        yield show


def json_object(field: str, text: str) -> dict[str, Any]:
    """An option's JSON object.

    Raises:
        ConfigError: it is none.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--{field} is no JSON: {error}.", field=field) from error
    if not isinstance(values, dict):
        raise ConfigError(f"--{field} is no JSON object.", field=field, hint='Give {"epochs": 10}, for example.')
    return values
