"""Scores of all neurons for all categories, in one pass over the data."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from neusemslice.batches import Batches
from neusemslice.config import MetricName
from neusemslice.contribution.contributions import Contributions
from neusemslice.contribution.measuring import measure_many, measure_statistics
from neusemslice.progress import OnProgress, ShouldStop
from neusemslice.tracing import SliceableModel


def score_neurons(
    model: SliceableModel,
    data: Batches,
    metric: str = "taylor",
    *,
    baseline: Float[Tensor, "..."] | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> Contributions:
    """Contribution of every neuron of every sliceable layer to every category (paper, section 3.2).

    One pass over the data, whatever the number of layers and categories; the scores do not depend on the batch size
    beyond float rounding. The metrics are defined in `neusemslice.contribution.metrics`.

    Args:
        model: the traced model.
        data: iterable of (inputs [batch, *input shape], labels); read once, stage "score". Labels are whole numbers
            [batch], or the floating point targets of a regression, [batch, outputs] ([batch] for one output).
        metric: a name in `METRICS`.
        baseline: the input that deeplift, conductance and integrated_gradients compare with, [*input shape]; zeros if
            None.
        on_progress: called with (stage, batches done, batches in all); with conductance and integrated_gradients these
            are hundredths of batches.
        should_stop: asked whenever progress is reported.

    Raises:
        ConfigError: the metric is unknown, or takes no baseline.
        DatasetError: the data or baseline does not fit the model, a category has no samples, or an output is not
            finite.
        StoppedError: should_stop() returned true.
    """
    return measure_statistics(
        model, data, metric, baseline=baseline, on_progress=on_progress, should_stop=should_stop
    ).contributions()


def score_many(
    model: SliceableModel,
    data: Batches,
    metrics: Sequence[MetricName],
    *,
    baseline: Float[Tensor, "..."] | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> dict[MetricName, Contributions]:
    """`score_neurons` for several metrics in one pass over the data, with the same results.

    avg, var, ens, taylor, taylor_summed and taylor_weight share one forward and one backward pass of each batch.

    Args and Raises: as those of `score_neurons`; a baseline goes to the metrics that take one.
    """
    statistics = measure_many(model, data, metrics, baseline=baseline, on_progress=on_progress, should_stop=should_stop)
    return {metric: found.contributions() for metric, found in statistics.items()}
