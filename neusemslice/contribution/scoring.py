"""Scores of all neurons for all categories, in one pass over the data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import get_args

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from neusemslice.batches import Batches, check_batches, count_batches
from neusemslice.config import MetricName
from neusemslice.contribution.metrics import METRICS
from neusemslice.contribution.moments import Moments
from neusemslice.errors import ConfigError, DatasetError
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.tracing import SliceableModel


@dataclass(frozen=True, eq=False)
class Contributions(Mapping[str, Float64[Tensor, "categories _"]]):
    """Layer name -> contribution of each neuron to each category, on the CPU.

    Attributes:
        metric: what was measured.
        counts: samples of each category.
        overall: layer name -> the same metric over all samples as one category.
    """

    metric: str
    counts: Int64[Tensor, " categories"]
    overall: Mapping[str, Float64[Tensor, " _"]]
    _by_category: Mapping[str, Float64[Tensor, "categories _"]]

    def __getitem__(self, layer: str) -> Float64[Tensor, "categories neurons"]:
        return self._by_category[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_category)

    def __len__(self) -> int:
        return len(self._by_category)


def score_neurons(
    model: SliceableModel,
    data: Batches,
    metric: str = "taylor",
    *,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> Contributions:
    """Contribution of every neuron of every sliceable layer to every category (paper, section 3.2).

    One pass over the data, whatever the number of layers and categories; the scores do not depend on the batch size
    beyond float rounding. The metrics are defined in `neusemslice.contribution.metrics`.

    Args:
        model: the traced model.
        data: iterable of (inputs [batch, *input shape], labels [batch]); read once, stage "score".
        metric: a name in `METRICS`.
        on_progress: called with (stage, batches done, batches in all).
        should_stop: asked after each batch.

    Raises:
        ConfigError: the metric is unknown.
        DatasetError: the data does not fit the model, a category has no samples, or an output is not finite.
        StoppedError: should_stop() returned true.
    """
    if metric not in METRICS:
        raise ConfigError(
            f"metric={metric!r} is unknown.", field="metric", hint=f"Use one of: {', '.join(get_args(MetricName))}."
        )
    progress = Progress(on_progress, should_stop)
    measure = METRICS[metric].prepare(model)
    moments: dict[str, Moments] = {}
    for done, (inputs, labels) in enumerate(check_batches(data, model), start=1):
        for layer, values in measure(inputs, labels).items():
            batch = Moments.of(values, labels, model.categories)
            moments[layer] = moments[layer].merge(batch) if layer in moments else batch
        progress.report("score", done, max(count_batches(data), done))
    counts = next(iter(moments.values())).counts.cpu()
    _require_every_category(counts)
    reduce = METRICS[metric].reduce
    by_category = {layer: reduce(values).cpu() for layer, values in moments.items()}
    overall = {layer: reduce(values.overall())[0].cpu() for layer, values in moments.items()}
    for layer, scores in by_category.items():
        if not torch.isfinite(scores).all():
            raise DatasetError(
                f"The {metric} contributions of layer {layer!r} are NaN or infinite.",
                hint="Check the normalisation of the inputs and the network's weights.",
            )
    return Contributions(metric, counts, MappingProxyType(overall), MappingProxyType(by_category))


def _require_every_category(counts: Int64[Tensor, " categories"]) -> None:
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing:
        raise DatasetError(
            f"The data has no samples of category {', '.join(map(str, missing[:10]))}"
            f"{' and others' if len(missing) > 10 else ''} (of {len(counts)}).",
            hint="Contributions are per category: give samples of each, or a network with fewer outputs.",
        )
