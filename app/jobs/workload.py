"""How much work a job is, by a simple model of what is known before it runs; docs/estimates.md says how simple.

The unit of time is a forward pass of one sample. A backward pass counts as two.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from app.db import JsonObject
from app.jobs.specs import (
    ClientSpec,
    CompareSpec,
    IncrementSpec,
    ReadaptSpec,
    RestructureSpec,
    SliceSpec,
    SlicingParams,
    TrainingParams,
)

FLOAT_BYTES = 4
TRAINING_PASSES = 3.0
METRIC_PASSES = {"avg": 1.0, "var": 1.0, "ens": 1.0, "deeplift": 6.0, "conductance": 60.0, "integrated_gradients": 60.0}
"""Passes over each sample; metrics that are not named need a forward and a backward one."""
REFIT_PASSES = 4.0
ACTIVATIONS_PER_INPUT = 20
"""Values that a network holds for each value of its input, all layers together; of usual image networks."""
PROCESS_BYTES = 600 * 1024**2
"""torch itself."""
FEATURES_BUDGET_BYTES = 2 * 1024**3
"""The library takes its features in groups of layers that fit (SlicingConfig.memory_budget_bytes)."""


@dataclass(frozen=True)
class Workload:
    """What a job will compute and hold."""

    operations: float
    """Floating-point operations of matrix products."""
    memory_bytes: int


def workload(spec: ClientSpec, model: JsonObject, datasets: Mapping[str, JsonObject]) -> Workload:
    """The work of `spec`, on the facts of its model and of its datasets by JSON pointer."""
    known, new = datasets.get("/dataset_id", {}), datasets.get("/new_dataset_id", {})
    train, test = _samples(known, "train", spec.limit_per_category), _samples(known, "test", None)
    training: TrainingParams | None = None
    slicing: SlicingParams | None = None
    passes = 0.0
    match spec:
        case SliceSpec():
            slicing = spec.slicing
            passes = _analysis(slicing, train) + test * (1 + len(spec.sweep))
        case CompareSpec():
            slicing = SlicingParams(samples_per_category=spec.samples_per_category)
            points = len(spec.compressions) + len(spec.thresholds) + len(spec.fractions) or 7
            scored = sum(METRIC_PASSES.get(metric, TRAINING_PASSES) for metric in spec.metrics) * train
            passes = scored + test * points * len(spec.metrics) * len(spec.strategies)
        case RestructureSpec():
            slicing, training = spec.slicing, spec.fine_tuning
            passes = _analysis(slicing, train) + 2 * test
            passes += REFIT_PASSES * min(train, spec.calibration_per_category * known.get("categories", 1))
            passes += _training(spec.fine_tuning, train)
            if spec.pruning is not None:
                training = training or spec.pruning.fine_tuning
                passes += (spec.pruning.iterations or 10) * (test + _training(spec.pruning.fine_tuning, train))
        case ReadaptSpec():
            slicing, training = spec.analysis, spec.training
            steps = 0 if spec.attack is None else spec.attack.steps if spec.attack.method == "pgd" else 1
            drawn = min(spec.samples, train or spec.samples)
            passes = _analysis(slicing, train) + 2 * steps * TRAINING_PASSES * drawn + 3 * test
            passes += _training(training, 2 * drawn)
        case IncrementSpec():
            slicing, training = spec.slicing or SlicingParams(), spec.training
            learned = _samples(new, "train", spec.limit_per_category)
            passes = _analysis(slicing, train + learned) + _training(training, learned) + 2 * (test + learned)
    return Workload(passes * operations_per_sample(model), _memory(spec, model, known, slicing, training))


def operations_per_sample(model: JsonObject) -> float:
    """Of one forward pass: counted when the model was inspected, else two for each parameter, as in linear layers."""
    return float(model.get("flops") or 2 * model.get("parameters", 0))


def _analysis(slicing: SlicingParams | None, samples: int) -> float:
    if slicing is None:
        return 0.0
    metric = 1.0 if slicing.strategy in ("random", "deeparc") else METRIC_PASSES.get(slicing.metric, TRAINING_PASSES)
    return samples * (metric + 1.0)


def _training(training: TrainingParams | None, samples: int) -> float:
    return 0.0 if training is None else TRAINING_PASSES * training.epochs * samples


def _samples(dataset: JsonObject, split: str, limit_per_category: int | None) -> int:
    counts = dataset.get("samples", {}).get(split, {}).get("per_category", [])
    return sum(count if limit_per_category is None else min(count, limit_per_category) for count in counts)


def _memory(
    spec: ClientSpec,
    model: JsonObject,
    data: JsonObject,
    slicing: SlicingParams | None,
    training: TrainingParams | None,
) -> int:
    weights = FLOAT_BYTES * model.get("parameters", 0)
    inputs = FLOAT_BYTES * math.prod(model.get("input_shape", []))
    batch = max(spec.batch_size, 0 if training is None else training.batch_size)
    held: int = PROCESS_BYTES + weights * (2 if training is None else 5) + batch * inputs * ACTIVATIONS_PER_INPUT
    if slicing is not None:
        neurons = sum(layer["neurons"] for layer in model.get("sliceable_layers", []))
        features = FLOAT_BYTES * neurons * slicing.samples_per_category * data.get("categories", 0)
        held += min(features, FEATURES_BUDGET_BYTES)
    return held
