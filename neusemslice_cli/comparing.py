"""`neusemslice compare`: strategies, metrics and cuts on files, without a service."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neusemslice.comparison_config import ComparisonConfig
from neusemslice.config import CALIBRATION_PER_CATEGORY
from neusemslice.errors import ConfigError
from neusemslice_cli.files import BatchSize, Data, Preprocessing, Seed, load, opened, progress_bar, require_folder

if TYPE_CHECKING:
    from neusemslice import Comparison

Models = Annotated[
    list[Path], typer.Argument(help="Checkpoints (.safetensors), or one architecture (.json) with --weights.")
]
AllWeights = Annotated[
    list[Path] | None, typer.Option("--weights", help="Weights for an architecture; repeat it for several models.")
]
Strategies = Annotated[
    str, typer.Option(help="Of semantic, categorywise, global, random, deeparc; separated by commas.")
]
Metrics = Annotated[str, typer.Option(help="Contribution metrics, separated by commas.")]
Compressions = Annotated[str, typer.Option(help="Shares of the parameters to remove, such as 0.1,0.3,0.5.")]
Thresholds = Annotated[str, typer.Option(help="Cuts for semantic, instead of --compressions.")]
Fractions = Annotated[str, typer.Option(help="Cuts for those that keep a fraction, instead of --compressions.")]
DeepArcThresholds = Annotated[str, typer.Option(help="Cuts for deeparc, which takes no compressions.")]
Pilot = Annotated[bool, typer.Option("--pilot/--no-pilot", help="Also silence each tenth of the contribution order.")]
Limit = Annotated[int | None, typer.Option(min=4, help="Analyse at most this many samples of each category.")]


def compare_files(
    models: Models,
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder for comparison.json, comparison.csv and report.html.")],
    weights: AllWeights = None,
    preprocess: Preprocessing = "{}",
    strategies: Strategies = ",".join(ComparisonConfig.strategies),
    metrics: Metrics = ",".join(ComparisonConfig.metrics),
    compressions: Compressions = "",
    thresholds: Thresholds = "",
    fractions: Fractions = "",
    deeparc_thresholds: DeepArcThresholds = ",".join(map(str, ComparisonConfig.deeparc_thresholds)),
    *,
    pilot: Pilot = True,
    limit_per_category: Limit = None,
    seed: Seed = 0,
    batch_size: BatchSize = 256,
) -> None:
    """Compare slicing strategies and metrics on networks and data on files."""
    from neusemslice import compare
    from neusemslice.comparison.report import summary

    config = ComparisonConfig(
        strategies=tuple(_words(strategies)),  # type: ignore[arg-type]  # checked at birth
        metrics=tuple(_words(metrics)),  # type: ignore[arg-type]  # checked at birth
        compressions=_numbers("compressions", compressions),
        thresholds=_numbers("thresholds", thresholds),
        fractions=_numbers("fractions", fractions),
        deeparc_thresholds=_numbers("deeparc-thresholds", deeparc_thresholds),
        pilot=pilot,
        seed=seed,
    )
    require_folder(output)
    named = {name: load(model, weight) for name, model, weight in _files(models, weights or [])}
    with opened(data, preprocess) as dataset, progress_bar() as on_progress:
        split = "test" if "test" in dataset.splits else "train"
        found = compare(
            named,
            dataset.batches("train", batch_size, limit_per_category=limit_per_category),
            dataset.batches(split, batch_size),
            config,
            calibration=dataset.batches("train", batch_size, limit_per_category=CALIBRATION_PER_CATEGORY),
            evaluated_on=split,
            category_names=dataset.facts.class_names,
            on_progress=on_progress,
        )
    found.write(output)
    typer.echo(_table(found))
    typer.echo(f"{summary(found)} Evaluated on the {split} split.")
    typer.echo(f"written: {output / 'report.html'}, comparison.json, comparison.csv")


def _table(found: "Comparison") -> str:
    """Mean accuracy over the common range of compressions, one row a strategy, one column a metric."""
    metrics = found.config.metrics
    lines = [f"{'mean accuracy':16}" + "".join(f"{metric:>22}" for metric in metrics)]
    named = {area.strategy for area in found.areas}
    for strategy in (name for name in found.config.strategies if name in named):
        areas = [found.areas_with(metric)[strategy].mean for metric in metrics]
        lines.append(f"{strategy:16}" + "".join(f"{area:22.2%}" for area in areas))
    return "\n".join(lines)


def _files(models: Sequence[Path], weights: Sequence[Path]) -> list[tuple[str, Path, Path | None]]:
    """A name for each model, its file and its weights.

    Raises:
        ConfigError: weights come with several models, or two models have one name.
    """
    if weights and len(models) > 1:
        raise ConfigError(
            f"There are {len(models)} models and --weights.",
            field="weights",
            hint="Give checkpoints alone, or one architecture (.json) with --weights for each model.",
        )
    pairs = [(models[0], weight) for weight in weights] if weights else [(model, None) for model in models]
    shown = [weight or model for model, weight in pairs]
    if len(set(shown)) < len(shown):
        raise ConfigError("A model is given twice.", field="models", hint="Give each file once.")
    unique = len({path.stem for path in shown}) == len(shown)
    return [(path.stem if unique else str(path), *pair) for path, pair in zip(shown, pairs, strict=True)]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(field: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in _words(text))
    except ValueError as error:
        raise ConfigError(
            f"--{field} is {text!r}.", field=field, hint="Give numbers separated by commas, such as 0.1,0.3,0.5."
        ) from error
