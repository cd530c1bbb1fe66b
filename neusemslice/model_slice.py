"""The result of every slicing strategy: which neurons are critical, and all that is needed to cut again elsewhere."""

import json
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

from neusemslice.config import SlicingConfig
from neusemslice.errors import CheckpointError, ConfigError
from neusemslice.selection import keep_masks

FORMAT = 3
"""Of the file. Format 1 had a config without targets and increments, format 2 one without budgets; they are read."""

_KEY = "neusemslice_slice"
_PARTS = ("contributions", "orders", "curves", "control_curves")


@dataclass(frozen=True, eq=False)
class ModelSlice:
    """The critical neurons of a model, with all that is needed to cut again elsewhere.

    A `deeparc` slice keeps layers whole or not at all: there a layer's curve is, throughout, the CKA of the places
    before and after it, its contribution one minus that, and the order that of the layer.

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
        return {layer: keep_masks(order, self.curves[layer], self.config) for layer, order in self.orders.items()}

    def merged(self) -> dict[str, Bool[Tensor, " _"]]:
        """For each layer, True for the neurons that are critical for any category."""
        return {layer: keep.any(0) for layer, keep in self.keep_masks.items()}

    def at(self, cut: float) -> "ModelSlice":
        """The same analysis cut at another theta (semantic, deeparc) or fraction (the other strategies).

        Raises:
            ConfigError: the cut is not in (0, 1].
        """
        return replace(self, config=self.config.with_cut(cut))

    def summary(self) -> dict[str, dict[str, Any]]:
        """For each layer: neurons, how many are kept, and the coverage reached, averaged over the categories."""
        summary = {}
        for layer, keep in self.keep_masks.items():
            last = (keep.sum(1, keepdim=True) - 1).clamp(min=0)
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
            f"{part}/{layer}": tensor.clone().contiguous()
            for part in (*_PARTS, "keep_masks")
            for layer, tensor in getattr(self, part).items()
        }
        about = {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "model_fingerprint": self.model_fingerprint,
            "layers": list(self.layers),
        }
        save_file(tensors, path, {_KEY: json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> "ModelSlice":
        """Read what `save` wrote. Nothing in the file is executed.

        Raises:
            CheckpointError: the file is no slice, is damaged, or was written by a later release.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[_KEY])
                if not 1 <= about["format"] <= FORMAT:
                    raise CheckpointError(
                        f"{path} is a slice of format {about['format']!r}; this release reads 1 to {FORMAT}.",
                        hint="Read it with the release that wrote it, or slice again.",
                    )
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
