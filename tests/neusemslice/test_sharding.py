"""An analysis in shards is the unsharded one to the last bit, whatever the metric, the strategy and the shards."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neusemslice import ModelSlice, Shard, SlicingConfig, analyse_shard, merge_partials, slice_model, trace
from neusemslice.config import MOST_SHARDS
from neusemslice.contribution import METRICS
from neusemslice.contribution.blocks import block_bounds
from neusemslice.data import Preprocess
from neusemslice.data.dataset import Batches
from neusemslice.errors import CheckpointError, ConfigError, DatasetError
from neusemslice.tracing import SliceableModel
from tests.neusemslice.networks import mlp, randomised, vgg_like

Analyse = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def model() -> SliceableModel:
    return trace(vgg_like(), torch.zeros(1, 2, 12, 12))


def draw(shape: tuple[int, ...], samples: int, batch_size: int) -> Batches:
    """Categories in no order, 0 to 2; the last of them late and rare."""
    random = np.random.default_rng(5)
    labels = random.integers(0, 2, samples)
    labels[samples - samples // 6 :] = 2
    inputs = random.normal(size=(samples, *shape)).astype(np.float32)
    return Batches(inputs, labels, np.arange(samples), batch_size, Preprocess())


@pytest.fixture(scope="module")
def data() -> Batches:
    return draw((2, 12, 12), 70, 6)


@pytest.fixture
def analyse(tmp_path: Path) -> Analyse:
    def work(model: SliceableModel, data: Batches, config: SlicingConfig, shards: int) -> list[Path]:
        paths = [tmp_path / f"{index}.safetensors" for index in range(shards)]
        for index, path in enumerate(paths):
            analyse_shard(model, data, config, Shard(index, shards), path)
        return paths

    return work


def same(one: ModelSlice, other: ModelSlice) -> bool:
    parts = ("contributions", "orders", "curves", "control_curves", "keep_masks")
    equal = [
        torch.equal(getattr(one, part)[layer], getattr(other, part)[layer]) for part in parts for layer in other.layers
    ]
    return one.layers == other.layers and one.config == other.config and all(equal)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_in_shards_is_the_same_to_the_last_bit(
    model: SliceableModel, data: Batches, analyse: Analyse, metric: Any, tmp_path: Path
) -> None:
    config = SlicingConfig(metric=metric, samples_per_category=8)
    partials = analyse(model, data, config, 3)
    whole, merged = slice_model(model, data, config), merge_partials(model, config, partials[::-1])
    assert same(merged, whole)
    whole.save(tmp_path / "whole")
    merged.save(tmp_path / "merged")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "merged").read_bytes()


@pytest.mark.parametrize("shards", [1, 2, 5, 12, 13, 16, 40])
def test_any_number_of_shards_will_do(model: SliceableModel, data: Batches, analyse: Analyse, shards: int) -> None:
    config = SlicingConfig(metric="avg", samples_per_category=9)
    assert same(merge_partials(model, config, analyse(model, data, config, shards)), slice_model(model, data, config))


CONFIGS: list[dict[str, Any]] = [
    {"strategy": "categorywise", "estimator": "biased"},
    {"strategy": "global", "target_compression": 0.423},
    {"strategy": "random", "seed": 7},
    {"threshold": 0.8, "increment": 2},
]


@pytest.mark.parametrize("asked", CONFIGS, ids=lambda asked: asked.get("strategy", "semantic"))
def test_partials_serve_every_strategy_and_cut(
    model: SliceableModel, data: Batches, analyse: Analyse, asked: dict[str, Any]
) -> None:
    common = {"metric": "taylor", "samples_per_category": 10}
    partials = analyse(model, data, SlicingConfig(**common), 4)
    config = SlicingConfig(**common, **asked)
    assert same(merge_partials(model, config, partials), slice_model(model, data, config))


def test_a_budget_that_takes_several_passes_changes_nothing(
    model: SliceableModel, data: Batches, analyse: Analyse
) -> None:
    config = SlicingConfig(metric="avg", samples_per_category=8, memory_budget_bytes=9_000)
    assert same(merge_partials(model, config, analyse(model, data, config, 3)), slice_model(model, data, config))


def test_rows_may_be_any_of_the_split(model: SliceableModel, data: Batches, analyse: Analyse) -> None:
    some = replace(data, rows=np.flatnonzero(np.arange(70) % 5))
    config = SlicingConfig(metric="taylor_summed", samples_per_category=6)
    assert same(merge_partials(model, config, analyse(model, some, config, 3)), slice_model(model, some, config))


def test_a_regression_has_all_samples_in_every_category(analyse: Analyse) -> None:
    model = trace(randomised(mlp()), torch.zeros(1, 6))
    data = draw((6,), 50, 4)
    targets = replace(data, labels=np.random.default_rng(1).normal(size=(50, 3)))
    config = SlicingConfig(metric="taylor", samples_per_category=20)
    assert same(merge_partials(model, config, analyse(model, targets, config, 4)), slice_model(model, targets, config))


def test_shards_are_whole_blocks_and_together_the_whole() -> None:
    for batches in (1, 5, 16, 17, 1000):
        for count in (1, 3, 16):
            parts = [Shard(index, count).bounds(batches) for index in range(count)]
            assert [part[0] for part in parts[1:]] == [part[-1] for part in parts[:-1]]
            assert (parts[0][0], parts[-1][-1]) == (0, batches)
            assert sum(len(part) - 1 for part in parts) == min(MOST_SHARDS, batches) == len(block_bounds(batches)) - 1
    with pytest.raises(ConfigError, match="no shard 3 of 3"):
        Shard(3, 3)


def wrong_sets(paths: Sequence[Path], other: Sequence[Path]) -> dict[str, list[Path]]:
    return {
        "none": [],
        "one missing": list(paths[:2]),
        "one twice": [paths[0], *paths[:2]],
        "mixed": [*paths[:2], *other],
    }


@pytest.mark.parametrize("case", ["none", "one missing", "one twice", "mixed"])
def test_partials_that_do_not_go_together_are_refused(
    model: SliceableModel, data: Batches, analyse: Analyse, tmp_path: Path, case: str
) -> None:
    config = SlicingConfig(metric="avg", samples_per_category=8)
    other = tmp_path / "other"
    analyse_shard(model, replace(data, batch_size=5), config, Shard(2, 3), other)
    chosen = wrong_sets(analyse(model, data, config, 3), [other])[case]
    with pytest.raises(CheckpointError, match="different data" if case == "mixed" else "each once"):
        merge_partials(model, config, chosen)


def test_another_model_or_metric_or_a_damaged_file_is_refused(
    model: SliceableModel, data: Batches, analyse: Analyse, tmp_path: Path
) -> None:
    config = SlicingConfig(metric="avg", samples_per_category=8)
    partials = analyse(model, data, config, 2)
    with pytest.raises(CheckpointError, match="another model or another config"):
        merge_partials(model, replace(config, metric="var"), partials)
    with pytest.raises(CheckpointError, match="another model"):
        merge_partials(trace(randomised(vgg_like(), seed=9), torch.zeros(1, 2, 12, 12)), config, partials)
    slice_model(model, data, config).save(partials[1])
    with pytest.raises(CheckpointError, match="is damaged"):
        merge_partials(model, config, partials)
    partials[1].write_bytes(b"nonsense")
    with pytest.raises(CheckpointError):
        merge_partials(model, config, partials)


@pytest.mark.parametrize("values", [{"strategy": "deeparc"}, {"landscape": "flattened"}])
def test_what_cannot_be_shared_out_is_refused(
    model: SliceableModel, data: Batches, tmp_path: Path, values: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"nothing to share out|keeps every position"):
        analyse_shard(model, data, SlicingConfig(**values), Shard(0, 2), tmp_path / "partial")


def test_data_that_lacks_a_category_fails_as_without_shards(
    model: SliceableModel, data: Batches, analyse: Analyse
) -> None:
    first = data.between(0, 9)
    config = SlicingConfig(metric="avg", samples_per_category=8)
    with pytest.raises(DatasetError) as expected:
        slice_model(model, first, config)
    with pytest.raises(DatasetError) as found:
        merge_partials(model, config, analyse(model, first, config, 2))
    assert found.value.message == expected.value.message
