"""What the samples seen so far tell of every neuron: mergeable, so that data may be scored in parts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from neusemslice.batches import Batches, check_batches, count_batches, is_regression
from neusemslice.config import MetricName
from neusemslice.contribution.contributions import Contributions
from neusemslice.contribution.metrics import METRICS, prepare, require_metric
from neusemslice.contribution.moments import Moments, RunningMoments
from neusemslice.errors import CheckpointError, ConfigError, DatasetError, SliceMismatchError
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.safetensors_file import read_json_metadata, replacing
from neusemslice.tracing import SliceableModel

Task = Literal["classification", "regression"]

_KEY = "neusemslice_statistics"
_FORMAT = 1
_TENSORS = ("counts", "mean", "squared_deviations")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Per-category moments of a metric's per-sample values, in float64 on the CPU.

    The statistics of parts of the data, merged in any order, are those of the whole up to the rounding of float64. A
    part may lack categories.

    Attributes:
        metric: what was measured.
        model_fingerprint: of the model.
        task: `classification`, or `regression` where the labels were targets.
        baseline: digest of the baseline input, or None for a metric that takes none.
        layers: layer name -> neurons, in forward order.
        moments: of all layers' neurons one after the other, [categories, neurons].
    """

    metric: MetricName
    model_fingerprint: str
    task: Task
    baseline: str | None
    layers: Mapping[str, int]
    moments: Moments

    def merge(self, other: "Statistics") -> "Statistics":
        """The statistics of both sets of samples together.

        Raises:
            SliceMismatchError: they are of different models.
            ConfigError: they are of different metrics, baselines, or kinds of labels.
        """
        if self.model_fingerprint != other.model_fingerprint:
            raise SliceMismatchError(
                f"The statistics are of two models, {self.model_fingerprint:.12} and {other.model_fingerprint:.12}.",
                hint="Merge statistics of one model: same structure, same weights, same type.",
            )
        for field in ("metric", "task", "baseline"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                raise ConfigError(
                    f"The statistics differ in {field}: {mine!r} and {theirs!r}.",
                    field=field,
                    hint="Measure all parts with the same metric, baseline and kind of labels.",
                )
        return replace(self, moments=self.moments.merge(other.moments))

    def contributions(self) -> Contributions:
        """The scores.

        Raises:
            DatasetError: a category has no samples, or a score is not finite.
        """
        _require_every_category(self.moments.counts)
        reduce = METRICS[self.metric].reduce
        by_category: dict[str, Tensor] = {}
        overall: dict[str, Tensor] = {}
        start = 0
        for layer, neurons in self.layers.items():
            own = self.moments.neurons(start, start + neurons)
            start += neurons
            by_category[layer], overall[layer] = reduce(own), reduce(own.overall())[0]
            if not torch.isfinite(by_category[layer]).all():
                raise DatasetError(
                    f"The {self.metric} contributions of layer {layer!r} are NaN or infinite.",
                    hint="Check the normalisation of the inputs and the network's weights.",
                )
        return Contributions(self.metric, self.moments.counts, MappingProxyType(overall), MappingProxyType(by_category))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file that `load` reads back, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        about = {
            "format": _FORMAT,
            "metric": self.metric,
            "model_fingerprint": self.model_fingerprint,
            "task": self.task,
            "baseline": self.baseline,
            "layers": list(self.layers.items()),
        }
        tensors = {name: getattr(self.moments, name).contiguous() for name in _TENSORS}
        with replacing(Path(path)) as draft:
            save_file(tensors, draft, {_KEY: json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Read what `save` wrote. Nothing in the file is executed.

        Raises:
            CheckpointError: the file holds no statistics of this format, or is damaged.
            OSError: the file cannot be opened.
        """
        about = read_json_metadata(Path(path), _KEY, CheckpointError)
        if not isinstance(about, dict) or about.get("format") != _FORMAT:
            raise _damaged(path, "it has no statistics of a known format")
        tensors = load_file(path)
        if tensors.keys() != set(_TENSORS):
            raise _damaged(path, f"its tensors are {sorted(tensors)}")
        layers = _layers_of(path, about)
        _check_moments(path, tensors, sum(layers.values()))
        return cls(
            metric=about["metric"],
            model_fingerprint=about["model_fingerprint"],
            task=about["task"],
            baseline=about["baseline"],
            layers=MappingProxyType(layers),
            moments=Moments(**tensors),
        )


def measure_statistics(
    model: SliceableModel,
    data: Batches,
    metric: str = "taylor",
    *,
    baseline: Float[Tensor, "..."] | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> Statistics:
    """The statistics behind `score_neurons`, for data that comes in parts: on several machines, or over time.

    Args: as those of `score_neurons`. The data may lack categories.

    Raises:
        ConfigError: the metric is unknown or takes no baseline.
        DatasetError: the data does not fit the model, has no sample, or an output is not finite.
        StoppedError: should_stop() returned true.
    """
    name = require_metric(metric)
    return measure_many(model, data, [name], baseline=baseline, on_progress=on_progress, should_stop=should_stop)[name]


def measure_many(
    model: SliceableModel,
    data: Batches,
    metrics: Sequence[MetricName],
    *,
    baseline: Float[Tensor, "..."] | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> dict[MetricName, Statistics]:
    """The statistics of several metrics in one pass over the data.

    All metrics that need activations or gradients share one forward and one backward pass of each batch.

    Args and Raises: as those of `measure_statistics`; a baseline goes to the metrics that take one.
    """
    _check_metrics(metrics, has_baseline=baseline is not None)
    reference = _reference(model, baseline)
    progress = Progress(on_progress, should_stop)
    quantities = frozenset(METRICS[metric].quantity for metric in metrics)
    passes = prepare(model, quantities, reference)
    layers = {layer.name: layer.neurons for layer in model.sliceable_layers}
    running = {
        quantity: RunningMoments(model.categories, sum(layers.values()), model.device) for quantity in quantities
    }
    task: Task = "classification"
    for done, (inputs, labels) in enumerate(check_batches(data, model), start=1):
        task = "regression" if is_regression(labels) else "classification"
        for measure in passes:
            for quantity, by_layer in measure(inputs, labels).items():
                values = torch.cat([by_layer[layer].double() for layer in layers], dim=-1)
                if task == "classification":
                    running[quantity].add(values, labels)
                elif values.ndim == 3:
                    running[quantity].add_to_all(values)
                else:
                    running[quantity].add_to_all(values.unsqueeze(1).expand(-1, model.categories, -1))
        progress.report("score", done, max(count_batches(data), done))
    digest = _digest(reference)
    return {
        metric: Statistics(
            metric=metric,
            model_fingerprint=model.fingerprint,
            task=task,
            baseline=digest if METRICS[metric].takes_baseline else None,
            layers=MappingProxyType(layers),
            moments=running[METRICS[metric].quantity].moments.to("cpu"),
        )
        for metric in metrics
    }


def _check_metrics(metrics: Sequence[MetricName], *, has_baseline: bool) -> None:
    """Raises ConfigError if a metric is unknown, there is none, or none of them takes the baseline."""
    if not metrics:
        raise ConfigError("There is no metric to measure.", field="metrics", hint="Name at least one.")
    takers = [require_metric(metric) for metric in metrics if METRICS[require_metric(metric)].takes_baseline]
    if has_baseline and not takers:
        known = ", ".join(name for name, metric in METRICS.items() if metric.takes_baseline)
        raise ConfigError(
            f"A baseline is given, but {', '.join(metrics)} compares with none.",
            field="baseline",
            hint=f"Leave it out, or use one of: {known}.",
        )


def _reference(model: SliceableModel, baseline: Tensor | None) -> Float[Tensor, "1 ..."]:
    """The baseline as a batch of one, zeros if None.

    Raises:
        DatasetError: it has another shape than a sample.
    """
    if baseline is None:
        baseline = torch.zeros(model.input_shape)
    if tuple(baseline.shape) not in (model.input_shape, (1, *model.input_shape)):
        raise DatasetError(
            f"The baseline has shape {tuple(baseline.shape)}; the model takes samples of {model.input_shape}.",
            hint="Give one sample.",
        )
    return baseline.detach().to(model.device, model.dtype).reshape(1, *model.input_shape)


def _digest(baseline: Tensor) -> str:
    return hashlib.sha256(baseline.double().cpu().contiguous().numpy().tobytes()).hexdigest()


def _require_every_category(counts: Tensor) -> None:
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing:
        raise DatasetError(
            f"The data has no samples of category {', '.join(map(str, missing[:10]))}"
            f"{' and others' if len(missing) > 10 else ''} (of {len(counts)}).",
            hint="Contributions are per category: give samples of each, or a network with fewer outputs.",
        )


def _layers_of(path: str | Path, about: dict[str, Any]) -> dict[str, int]:
    """The layers that the metadata name, once all its fields are of their kind."""
    layers = about.get("layers")
    if not isinstance(layers, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in layers):
        raise _damaged(path, "its layers are no pairs of name and neurons")
    if not all(isinstance(name, str) and type(neurons) is int and neurons > 0 for name, neurons in layers):
        raise _damaged(path, "its layers are no pairs of name and neurons")
    known = about.get("metric") in METRICS and about.get("task") in get_args(Task)
    if not known or not isinstance(about.get("model_fingerprint"), str):
        raise _damaged(path, "its metric, task or model is unknown")
    if isinstance(about.get("baseline"), str) != METRICS[about["metric"]].takes_baseline:
        raise _damaged(path, "its baseline does not go with its metric")
    return dict(layers)


def _check_moments(path: str | Path, tensors: dict[str, Tensor], neurons: int) -> None:
    counts, mean, deviations = (tensors[name] for name in _TENSORS)
    if counts.dtype != torch.int64 or counts.ndim != 1 or bool((counts < 0).any()):
        raise _damaged(path, f"its counts are {counts.dtype} of shape {tuple(counts.shape)}, or negative")
    for name, tensor in (("mean", mean), ("squared_deviations", deviations)):
        if tensor.dtype != torch.float64 or tuple(tensor.shape) != (len(counts), neurons):
            raise _damaged(path, f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise _damaged(path, f"{name} holds NaN or infinity")
    if bool((deviations < 0).any()):
        raise _damaged(path, "squared_deviations holds negative numbers")


def _damaged(path: str | Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {reason}.", hint="Use a file written by Statistics.save.")
