"""Which neurons are critical: contributions put them in order, a cut decides how many are kept."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neusemslice.batches import Batches, require_reiterable
from neusemslice.config import SlicingConfig
from neusemslice.contribution import Contributions, score_neurons
from neusemslice.errors import CheckpointError, ConfigError, DatasetError
from neusemslice.features import collect_features, layer_groups
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.selection import keep_counts, keep_first
from neusemslice.similarity import LEAST_SAMPLES, prefix_curves
from neusemslice.tracing import SliceableModel

_KEY = "neusemslice_slice"
_FORMAT = 1
_PARTS = ("contributions", "orders", "curves", "control_curves")


@dataclass(frozen=True, eq=False)
class ModelSlice:
    """The critical neurons of a model, with all that is needed to cut again elsewhere.

    Attributes:
        config: how it was made, with the cut that is in force.
        model_fingerprint: of the model it belongs to.
        contributions: scores, [categories, neurons] for each layer.
        orders: neurons, most contributing first, [categories, neurons].
        curves: CKA coverage of every prefix of the order, [categories, neurons].
        control_curves: the same for a random order: what any choice of that size would reach.
    """

    config: SlicingConfig
    model_fingerprint: str
    contributions: Mapping[str, Float64[Tensor, "categories _"]]
    orders: Mapping[str, Int64[Tensor, "categories _"]]
    curves: Mapping[str, Float64[Tensor, "categories _"]]
    control_curves: Mapping[str, Float64[Tensor, "categories _"]]

    @property
    def layers(self) -> tuple[str, ...]:
        """The sliced layers, in forward order."""
        return tuple(self.orders)

    @cached_property
    def keep_masks(self) -> dict[str, Bool[Tensor, "categories _"]]:
        """For each layer and category, True for the critical neurons."""
        return {
            layer: keep_first(order, keep_counts(self.curves[layer], self.config))
            for layer, order in self.orders.items()
        }

    def merged(self) -> dict[str, Bool[Tensor, " _"]]:
        """For each layer, True for the neurons that are critical for any category."""
        return {layer: keep.any(0) for layer, keep in self.keep_masks.items()}

    def at(self, cut: float) -> "ModelSlice":
        """The same analysis cut at another theta (semantic) or fraction (the other strategies).

        Raises:
            ConfigError: the cut is not in (0, 1].
        """
        return replace(self, config=self.config.with_cut(cut))

    def summary(self) -> dict[str, dict[str, Any]]:
        """For each layer: neurons, how many are kept, and the coverage reached, averaged over the categories."""
        summary = {}
        for layer, keep in self.keep_masks.items():
            last = keep.sum(1, keepdim=True) - 1
            summary[layer] = {
                "neurons": keep.shape[1],
                "kept": int(keep.any(0).sum()),
                "kept_per_category": keep.sum(1).tolist(),
                "coverage": float(self.curves[layer].gather(1, last).mean()),
                "control_coverage": float(self.control_curves[layer].gather(1, last).mean()),
            }
        return summary

    def save(self, path: str | Path) -> None:
        """Write one safetensors file that `load` reads back. Other tools find `keep_masks/LAYER` in it."""
        tensors = {
            f"{part}/{layer}": tensor.contiguous()
            for part in (*_PARTS, "keep_masks")
            for layer, tensor in getattr(self, part).items()
        }
        about = {
            "format": _FORMAT,
            "config": self.config.to_dict(),
            "model_fingerprint": self.model_fingerprint,
            "layers": list(self.layers),
        }
        save_file(tensors, path, {_KEY: json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> "ModelSlice":
        """Read what `save` wrote. Nothing in the file is executed.

        Raises:
            CheckpointError: the file is no slice, or is damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[_KEY])
                config = SlicingConfig.from_dict(about["config"])
                parts = {
                    part: {layer: file.get_tensor(f"{part}/{layer}") for layer in about["layers"]} for part in _PARTS
                }
                fingerprint = about["model_fingerprint"]
        except (SafetensorError, KeyError, TypeError, ValueError, ConfigError) as error:
            raise CheckpointError(
                f"{path} is no slice, or is damaged: {type(error).__name__}: {error}.",
                hint="Use a file written by ModelSlice.save.",
            ) from error
        _check_parts(path, parts)
        return cls(config=config, model_fingerprint=str(fingerprint), **parts)


def _check_parts(path: str | Path, parts: dict[str, dict[str, Tensor]]) -> None:
    """Raises CheckpointError unless the tensors fit together: orders must be permutations."""
    for layer, order in parts["orders"].items():
        others = [tensors[layer] for name, tensors in parts.items() if name != "orders"]
        is_order = order.dtype == torch.int64 and order.ndim == 2 and order.numel() > 0
        if not is_order or any(o.shape != order.shape or o.dtype != torch.float64 for o in others):
            raise CheckpointError(f"{path}: the tensors of {layer!r} do not fit together.", hint="Make it anew.")
        if not torch.equal(order.sort(1).values, torch.arange(order.shape[1]).expand_as(order)):
            raise CheckpointError(f"{path}: the order of {layer!r} is no permutation.", hint="Make it anew.")


def slice_model(
    model: SliceableModel,
    data: Batches,
    config: SlicingConfig | None = None,
    *,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> ModelSlice:
    """Find the critical neurons of each layer for each category (paper section 3.3).

    All samples enter the contributions; the first `config.samples_per_category` of each category enter the coverage.
    The result depends on the data and the config, not on batch sizes or the memory budget.

    Args:
        data: re-iterable batches (inputs, labels).

    Raises:
        DatasetError: the data does not fit the model, a category has no or too few samples, or it reads only once.
        StoppedError: should_stop() returned true.
    """
    config = config or SlicingConfig()
    require_reiterable(data)
    scores = score_neurons(model, data, config.metric, on_progress=on_progress, should_stop=should_stop)
    _require_enough_samples(scores, config)
    progress = Progress(on_progress, should_stop)
    total = len(model.sliceable_layers) * model.categories
    groups = layer_groups(
        model.sliceable_layers,
        samples=int(scores.counts.clamp(max=config.samples_per_category).sum()),
        value_bytes=model.dtype.itemsize,
        landscape=config.landscape,
        budget_bytes=config.memory_budget_bytes,
    )
    orders: dict[str, Tensor] = {}
    curves: dict[str, Tensor] = {}
    controls: dict[str, Tensor] = {}
    for group in groups:
        features = collect_features(
            model,
            data,
            group,
            samples_per_category=config.samples_per_category,
            landscape=config.landscape,
            progress=progress,
        )
        for layer in group:
            orders[layer.name] = _orders(scores, layer.name, config)
            control = _random_order(layer.neurons, layer.name, f"control {config.seed}")
            found = []
            for category, values in enumerate(features.pop(layer.name)):
                order = orders[layer.name][category]
                found.append(_curves_of(category, layer.name, values, order, control, config))
                progress.report("coverage", len(curves) * model.categories + category + 1, total)
            curves[layer.name], controls[layer.name] = torch.stack(found).unbind(1)
    return ModelSlice(config, model.fingerprint, dict(scores), orders, curves, controls)


def _require_enough_samples(scores: Contributions, config: SlicingConfig) -> None:
    """Raises DatasetError if the estimator cannot compare a category's landscapes."""
    least = LEAST_SAMPLES[config.estimator]
    short = [str(category) for category, count in enumerate(scores.counts.tolist()) if count < least]
    if short:
        raise DatasetError(
            f"Category {', '.join(short[:10])}: CKA ({config.estimator}) needs at least {least} samples, "
            f"and there are {int(scores.counts.min())}.",
            hint="Add samples of these categories, or use estimator='biased' (2 samples).",
        )


def _curves_of(
    category: int, layer: str, values: Tensor, order: Tensor, control: Tensor, config: SlicingConfig
) -> Float64[Tensor, "2 neurons"]:
    """Coverage in contribution order and in random order."""
    try:
        return prefix_curves(values, [order, control], config.estimator).cpu()
    except DatasetError as error:
        raise DatasetError(f"Category {category}, layer {layer!r}: {error.message}", hint=error.hint) from error


def _orders(scores: Contributions, layer: str, config: SlicingConfig) -> Int64[Tensor, "categories neurons"]:
    """Each category's neurons, the first to keep in front; equal scores stay in the order of the layer."""
    per_category = scores[layer]
    if config.strategy == "random":
        return _random_order(per_category.shape[1], layer, f"order {config.seed}").expand_as(per_category).clone()
    if config.strategy == "global":
        per_category = scores.overall[layer].expand_as(per_category)
    return per_category.argsort(dim=1, descending=True, stable=True)


def _random_order(neurons: int, layer: str, purpose: str) -> Int64[Tensor, " neurons"]:
    """Depends on the layer's name and the purpose alone, not on what was drawn before."""
    seed = zlib.crc32(f"{purpose} {layer}".encode())
    return torch.randperm(neurons, generator=torch.Generator().manual_seed(seed))
