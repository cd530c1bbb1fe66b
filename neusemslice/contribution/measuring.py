"""From data to statistics: one pass over the batches, whatever the number of metrics, layers and categories."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from neusemslice.batches import Batches, check_batches, count_batches, is_regression
from neusemslice.config import MetricName
from neusemslice.contribution.blocks import block_bounds
from neusemslice.contribution.metrics import DEAR_QUANTITIES, METRICS, prepare, require_metric
from neusemslice.contribution.moments import RunningMoments
from neusemslice.contribution.statistics import Statistics, Task
from neusemslice.errors import ConfigError, DatasetError
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.tracing import SliceableModel


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

    All metrics that need activations or gradients share one forward and one backward pass of each batch. The statistics
    of the data's blocks (see `neusemslice.contribution.blocks`) are merged in order.

    Args and Raises: as those of `measure_statistics`; a baseline goes to the metrics that take one.
    """
    found: dict[MetricName, Statistics] = {}
    for block in measure_blocks(
        model,
        data,
        metrics,
        block_bounds(count_batches(data)),
        baseline=baseline,
        on_progress=on_progress,
        should_stop=should_stop,
    ):
        found = {name: found[name].merge(own) if found else own for name, own in block.items()}
    return found


def measure_blocks(
    model: SliceableModel,
    data: Batches,
    metrics: Sequence[MetricName],
    bounds: Sequence[int],
    *,
    baseline: Float[Tensor, "..."] | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> Iterator[dict[MetricName, Statistics]]:
    """The statistics of each block of batches, one after the other.

    Args:
        bounds: batches after which a block ends; those after the last one are a block of their own.

    Other args and Raises: as those of `measure_many`.
    """
    _check_metrics(metrics, has_baseline=baseline is not None)
    reference = _reference(model, baseline)
    quantities = frozenset(METRICS[metric].quantity for metric in metrics)
    meter = _Meter(Progress(on_progress, should_stop), count_batches(data), in_parts=bool(quantities & DEAR_QUANTITIES))
    passes = prepare(model, quantities, reference, meter.advance)
    meter.passes = len(passes)
    layers = {layer.name: layer.neurons for layer in model.sliceable_layers}
    running = _running(model, quantities)
    task: Task = "classification"
    digest = _digest(reference)

    def found() -> dict[MetricName, Statistics]:
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

    meter.report()
    batches, begun = 0, False
    for inputs, labels in check_batches(data, model):
        if begun and batches in bounds:
            yield found()
            running = _running(model, quantities)
        batches, begun = batches + 1, True
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
            meter.end_pass()
    yield found()


def _running(model: SliceableModel, quantities: frozenset[str]) -> dict[str, RunningMoments]:
    neurons = sum(layer.neurons for layer in model.sliceable_layers)
    return {quantity: RunningMoments(model.categories, neurons, model.device) for quantity in quantities}


class _Meter:
    """Stage "score": batches, or hundredths of a batch where a metric takes long over one."""

    def __init__(self, progress: Progress, batches: int, *, in_parts: bool) -> None:
        self.passes = 1
        self._progress = progress
        self._batches = batches
        self._parts = 100 if in_parts else 1
        self._passes_done = 0

    def end_pass(self) -> None:
        """Another pass over a batch is finished."""
        self._passes_done += 1
        if self._passes_done % self.passes == 0:
            self.report()

    def advance(self, share: float) -> None:
        """A pass is so far."""
        if share < 1:
            self.report(share)

    def report(self, share: float = 0.0) -> None:
        """Tell, and ask whether to stop; raises StoppedError. The total grows if the data does not know its length."""
        batches = (self._passes_done + share) / self.passes
        total = max(self._batches, math.ceil(batches), 1)
        self._progress.report("score", int(self._parts * batches), self._parts * total)


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
