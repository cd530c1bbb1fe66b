"""What the samples seen so far tell of every neuron: mergeable, so that data may be scored in parts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from neusemslice.config import MetricName
from neusemslice.contribution.contributions import Contributions
from neusemslice.contribution.metrics import METRICS
from neusemslice.contribution.moments import Moments
from neusemslice.errors import CheckpointError, ConfigError, DatasetError, SliceMismatchError
from neusemslice.safetensors_file import read_json_metadata, replacing

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
    if len(dict(layers)) != len(layers):
        raise _damaged(path, "it names a layer twice")
    metric, task, fingerprint = (about.get(field) for field in ("metric", "task", "model_fingerprint"))
    if metric not in tuple(METRICS) or task not in get_args(Task) or not isinstance(fingerprint, str):
        raise _damaged(path, "its metric, task or model is unknown")
    if isinstance(about.get("baseline"), str) != METRICS[metric].takes_baseline:
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
