"""What one shard of an analysis found, as a file: statistics block by block, and the outputs that CKA will compare."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neusemslice.config import MetricName, SlicingConfig
from neusemslice.contribution.blocks import block_bounds
from neusemslice.contribution.moments import Moments
from neusemslice.contribution.statistics import Statistics, Task
from neusemslice.errors import CheckpointError, ConfigError
from neusemslice.features import Part
from neusemslice.safetensors_file import read_json_metadata, replacing

_KEY = "neusemslice_partial"
_FORMAT = 1
_MOMENTS = ("counts", "mean", "squared_deviations")
_RESTS_ON = ("metric", "landscape", "samples_per_category", "memory_budget_bytes")
"""Fields of a config that a partial depends on; strategy, cut, estimator and seed come in when partials are merged."""


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of a dataset's batches, in order: whole blocks, and none at all where there are too few.

    Raises:
        ConfigError: there is no such part.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(
                f"There is no shard {self.index} of {self.count}.",
                field="shard",
                hint="Number the shards from 0 to count - 1.",
            )

    def bounds(self, batches: int) -> list[int]:
        """Where the shard's blocks begin among so many batches, and where its last one ends."""
        bounds = block_bounds(batches)
        blocks = len(bounds) - 1
        return bounds[self.index * blocks // self.count : (self.index + 1) * blocks // self.count + 1]


@dataclass(frozen=True)
class Origin:
    """What a partial was made from; those of one analysis agree in all of it.

    Attributes:
        model_fingerprint: of the model.
        data: digest of the batches of the whole dataset: which samples, with which labels, how many at once.
        batches: how many that are.
        rests_on: the fields of the config that count.
    """

    model_fingerprint: str
    data: str
    batches: int
    rests_on: Mapping[str, Any]

    @classmethod
    def of(cls, model_fingerprint: str, data: str, batches: int, config: SlicingConfig) -> "Origin":
        """From the config's fields."""
        return cls(model_fingerprint, data, batches, {field: getattr(config, field) for field in _RESTS_ON})


@dataclass(frozen=True)
class Partial:
    """A partial's file, of which only the header has been read.

    Attributes:
        path: of the file.
        origin: what it was made from.
        shard: which part it is.
        task: of its labels; None where the shard had no batch.
        baseline: of its statistics.
        layers: layer name -> neurons, in forward order.
    """

    path: Path
    origin: Origin
    shard: Shard
    task: Task | None
    baseline: str | None
    layers: Mapping[str, int]

    @classmethod
    def load(cls, path: str | Path) -> "Partial":
        """Read the header. Nothing in the file is executed.

        Raises:
            CheckpointError: the file is no partial of this format, or is damaged.
            OSError: the file cannot be opened.
        """
        about = read_json_metadata(Path(path), _KEY, CheckpointError)
        if not isinstance(about, dict) or about.get("format") != _FORMAT:
            raise _damaged(path, "it has no partial of a known format")
        try:
            return cls(
                Path(path),
                Origin(**about["origin"]),
                Shard(*about["shard"]),
                about["task"],
                about["baseline"],
                MappingProxyType(dict(about["layers"])),
            )
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from error

    def statistics(self) -> list[Statistics]:
        """Those of its blocks, in order.

        Raises:
            CheckpointError: the file is damaged.
        """
        found = []
        for block in range(len(self.shard.bounds(self.origin.batches)) - 1):
            tensors = [self._tensor(f"block/{block}/{name}") for name in _MOMENTS]
            shape = (len(tensors[0]), sum(self.layers.values()))
            if self.task is None or any(tensor.shape != shape for tensor in tensors[1:]):
                raise _damaged(self.path, f"the statistics of block {block} do not fit its layers")
            metric: MetricName = self.origin.rests_on["metric"]
            moments = Moments(*tensors)
            found.append(
                Statistics(metric, self.origin.model_fingerprint, self.task, self.baseline, self.layers, moments)
            )
        return found

    def features(self, part: Part) -> Tensor | None:
        """The part's values [samples, neurons, positions] on the shard's samples, None if it has none.

        Raises:
            CheckpointError: the file is damaged.
        """
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(_name(part)) if _name(part) in file.keys() else None  # noqa: SIM118 no mapping

    def _tensor(self, name: str) -> Tensor:
        try:
            with safe_open(self.path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor
        except SafetensorError as error:
            raise _damaged(self.path, str(error)) from error


def save_partial(
    path: str | Path,
    origin: Origin,
    shard: Shard,
    layers: Mapping[str, int],
    blocks: Sequence[Statistics],
    features: Mapping[Part, Tensor],
) -> None:
    """Write one safetensors file that `Partial.load` reads back, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    about = {
        "format": _FORMAT,
        "origin": asdict(origin),
        "shard": [shard.index, shard.count],
        "task": blocks[0].task if blocks else None,
        "baseline": blocks[0].baseline if blocks else None,
        "layers": list(layers.items()),
    }
    tensors = {
        f"block/{number}/{name}": getattr(block.moments, name).contiguous()
        for number, block in enumerate(blocks)
        for name in _MOMENTS
    }
    tensors |= {_name(part): values.cpu().contiguous() for part, values in features.items()}
    with replacing(Path(path)) as draft:
        save_file(tensors or {"empty": torch.zeros(0)}, draft, {_KEY: json.dumps(about)})


def _name(part: Part) -> str:
    return f"features/{part[1]}/{part[0]}"


def _damaged(path: str | Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {reason}.", hint="Use a file written by analyse_shard.")
