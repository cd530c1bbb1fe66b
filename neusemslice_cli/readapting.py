"""`neusemslice readapt`: repair of a network on files, without a service."""

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neusemslice.errors import ConfigError
from neusemslice.readaptation_config import STRATEGY_OF, AttackConfig, AttackMethod, ReadaptConfig, ReadaptMethod
from neusemslice_cli.files import (
    BatchSize,
    Data,
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
    from neusemslice import Readapted

Attack = Annotated[AttackMethod | None, typer.Option(help="Train on samples attacked like this; or give --new.")]
New = Annotated[Path | None, typer.Option(help="Train on these samples instead; of the same form as --data.")]
Epsilons = Annotated[str, typer.Option(help="Strengths, as shares of the input range, separated by commas.")]
ValueRange = Annotated[
    str, typer.Option(help="Lowest and highest valid stored value, such as 0,255. Default: what the data shows.")
]
Method = Annotated[ReadaptMethod, typer.Option(help="What trains; the last layer always does.")]
Slices = Annotated[
    list[Path] | None,
    typer.Option("--slice", help="A slice made from this model, instead of an analysis; two for semantic+deeparc."),
]


def readapt_files(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option(help="Where the repaired checkpoint goes.")] = Path("readapted.safetensors"),
    weights: Weights = None,
    preprocess: Preprocessing = "{}",
    attack: Attack = None,
    new: New = None,
    method: Method = "semantic",
    epsilons: Epsilons = ",".join(map(str, AttackConfig.epsilons)),
    steps: Annotated[int, typer.Option(help="Of pgd.")] = AttackConfig.steps,
    value_range: ValueRange = "",
    slices: Slices = None,
    metric: Metric = "taylor",
    threshold: Threshold = None,
    fraction: Fraction = None,
    deeparc_threshold: Annotated[float | None, typer.Option(help="For semantic+deeparc. Default 0.99.")] = None,
    samples: Annotated[int, typer.Option(help="Clean samples to train on, and others to attack.")] = 1000,
    training: Annotated[
        str, typer.Option(help='JSON: {"epochs", "learning_rate", "batch_size", "optimizer", "patience", ...}.')
    ] = "{}",
    seed: Seed = 0,
    batch_size: BatchSize = 256,
) -> None:
    """Make a network on files withstand an attack, or learn new samples, by training its critical neurons."""
    from neusemslice import ModelSlice, ValidRange, readapt

    values = {
        "method": method,
        "attack": attack and {"method": attack, "epsilons": _numbers("epsilons", epsilons), "steps": steps},
        "samples": samples,
        "training": {"seed": seed, **json_object("training", training)},
        "slicing": None
        if slices
        else _slicing(method, seed=seed, metric=metric, threshold=threshold, fraction=fraction),
        "deeparc_threshold": deeparc_threshold,
        "seed": seed,
    }
    config = ReadaptConfig.from_dict(values)
    require_folder(output)
    network = load(model, weights)
    stored = [ModelSlice.load(file) for file in slices or ()]
    with ExitStack() as stack:
        dataset = stack.enter_context(opened(data, preprocess))
        others = None if new is None else stack.enter_context(opened(new, preprocess))
        given = _numbers("value-range", value_range)
        found = readapt(
            network,
            dataset.batches("train", batch_size),
            config,
            new=None if others is None else others.batches("train", batch_size),
            slice_=stored or None,
            test=dataset.batches("test", batch_size) if "test" in dataset.splits else None,
            valid_range=ValidRange.of_stored(given, dataset.facts.preprocess, network.input_shape[0])
            if given
            else None,
            on_progress=stack.enter_context(progress_bar()),
        )
    found.save(output)
    _show(found)
    typer.echo(f"written: {output}")


def _show(found: "Readapted") -> None:
    report = found.report
    typer.echo(f"trained: {report.training_parameter_ratio:.2%} of {report.parameters:,} parameters (TPR)")
    for name, value in asdict(report.accuracies).items():
        typer.echo(f"{name}: {json.dumps(value)}")
    for record in report.training.curve:
        typer.echo(f"epoch {record.epoch}: loss {record.loss:.4f} " + json.dumps(record.measured))


def _slicing(method: str, *, seed: int, **given: Any) -> dict[str, Any] | None:
    """Fields of the method's slicing; none where everything trains.

    Raises:
        ConfigError: everything trains, and a cut is given.
    """
    strategy = STRATEGY_OF[method]
    own = {name: value for name, value in given.items() if value is not None}
    if strategy is not None:
        return {"strategy": strategy, "seed": seed, **own}
    if field := next((name for name in ("threshold", "fraction") if name in own), None):
        raise ConfigError(f"--{field} cuts a slice, and method=full takes none.", field=field, hint="Leave it out.")
    return None


def _numbers(field: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError as error:
        raise ConfigError(
            f"--{field} is {text!r}.", field=field, hint="Give numbers separated by commas, such as 0.05,0.1."
        ) from error
