"""Statistics of parts of the data: they merge to those of the whole, and come back from a file."""

import json
from functools import reduce
from itertools import permutations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neusemslice import SlicingConfig, Statistics, measure_statistics, reading, slice_model, trace
from neusemslice.contribution import METRICS, Contributions, measure_many, score_many, score_neurons
from neusemslice.contribution.moments import RunningMoments
from neusemslice.errors import CheckpointError, ConfigError, DatasetError, SliceMismatchError
from neusemslice.tracing import SliceableModel
from tests.neusemslice.networks import mlp, vgg_like

KEY = "neusemslice_statistics"


@pytest.fixture(scope="module")
def model() -> SliceableModel:
    return trace(vgg_like().double(), torch.zeros(1, 2, 12, 12))


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    """Two samples of each category, in order: the first third lacks category 2, the last one category 0."""
    generator = torch.Generator().manual_seed(4)
    return torch.randn(6, 2, 12, 12, generator=generator), torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.fixture
def statistics() -> Statistics:
    generator = torch.Generator().manual_seed(4)
    return measure_statistics(
        trace(mlp(), torch.zeros(1, 6)), [(torch.randn(9, 6, generator=generator), torch.arange(9) % 3)], "deeplift"
    )


def assert_close(found: Contributions, expected: Contributions) -> None:
    assert found.metric == expected.metric
    assert torch.equal(found.counts, expected.counts)
    for layer, scores in expected.items():
        torch.testing.assert_close(found[layer], scores, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(found.overall[layer], expected.overall[layer], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_parts_merge_to_the_whole_in_any_order(model: SliceableModel, data: tuple[Tensor, Tensor], task: str) -> None:
    inputs, labels = data
    if task == "regression":
        labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(8))
    metrics = tuple(METRICS)
    whole = score_many(model, [(inputs, labels)], metrics)
    parts = [measure_many(model, [batch], metrics) for batch in zip(inputs.split(2), labels.split(2), strict=True)]
    for metric in metrics:
        for order in permutations([part[metric] for part in parts]):
            assert_close(reduce(Statistics.merge, order).contributions(), whole[metric])
        first, second, third = (part[metric] for part in parts)
        assert_close(first.merge(second.merge(third)).contributions(), whole[metric])


def test_a_part_without_a_category_has_no_scores_of_its_own(model: SliceableModel, data: tuple[Tensor, Tensor]) -> None:
    half = measure_statistics(model, [(data[0][:4], data[1][:4])], "avg")
    assert half.moments.counts.tolist() == [2, 2, 0]
    with pytest.raises(DatasetError, match=r"no samples of category 2 \(of 3\)"):
        half.contributions()


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_several_metrics_in_one_pass_are_each_the_same_as_alone(
    model: SliceableModel, data: tuple[Tensor, Tensor], task: str
) -> None:
    inputs, labels = data if task == "classification" else (data[0], torch.ones(6, 3))
    together = score_many(model, [(inputs, labels)], tuple(METRICS))
    assert list(together) == list(METRICS)
    for metric, found in together.items():
        alone = score_neurons(model, [(inputs, labels)], metric)
        for layer in alone:
            assert torch.equal(found[layer], alone[layer])
            assert torch.equal(found.overall[layer], alone.overall[layer])


def test_metrics_share_the_forward_passes(model: SliceableModel, data: tuple[Tensor, Tensor]) -> None:
    calls: list[int] = []
    first = model.graph_module.get_submodule("0")
    handle = first.register_forward_hook(lambda _module, inputs, _output: calls.append(len(inputs[0])))
    score_many(model, iter([data]), ["avg", "var", "ens", "taylor", "taylor_summed", "taylor_weight"])
    handle.remove()
    assert calls == [1, 6]  # one sample to see how much memory a pass takes


def test_a_pass_takes_no_more_samples_than_fit(
    model: SliceableModel, data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = slice_model(model, [data], SlicingConfig(metric="deeplift", estimator="biased"))
    scores = score_many(model, [data], ["taylor", "deeplift"])
    monkeypatch.setattr(reading, "PASS_BYTES", 1)
    seen: list[int] = []
    first = model.graph_module.get_submodule("0")
    handle = first.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    pieces = slice_model(model, [data], SlicingConfig(metric="deeplift", estimator="biased"))
    again = score_many(model, [data], ["taylor", "deeplift"])
    handle.remove()
    assert set(seen) == {1}
    for layer in whole.layers:
        assert torch.allclose(pieces.curves[layer], whole.curves[layer], rtol=1e-9, atol=1e-12)
        for metric, found in scores.items():
            assert torch.allclose(again[metric][layer], found[layer], rtol=1e-9, atol=1e-15)


def test_no_metric_or_an_unknown_one_is_refused(model: SliceableModel, data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ConfigError, match="no metric"):
        score_many(model, [data], [])
    with pytest.raises(ConfigError, match="'tailor' is unknown"):
        measure_statistics(model, [data], "tailor")


def test_a_baseline_goes_to_the_metrics_that_take_one(model: SliceableModel, data: tuple[Tensor, Tensor]) -> None:
    baseline = torch.ones(2, 12, 12)
    found = score_many(model, [data], ["avg", "deeplift"], baseline=baseline)
    alone = score_neurons(model, [data], "deeplift", baseline=baseline)
    assert torch.equal(found["deeplift"]["4"], alone["4"])
    assert torch.equal(found["avg"]["4"], score_neurons(model, [data], "avg")["4"])


def test_statistics_of_other_origin_do_not_merge(model: SliceableModel, data: tuple[Tensor, Tensor]) -> None:
    one = measure_statistics(model, [data], "deeplift")
    zeros = measure_statistics(model, [data], "deeplift", baseline=torch.zeros(2, 12, 12))
    assert one.merge(zeros).moments.counts.tolist() == [4, 4, 4]
    with pytest.raises(ConfigError, match="differ in baseline") as caught:
        one.merge(measure_statistics(model, [data], "deeplift", baseline=torch.ones(2, 12, 12)))
    assert caught.value.field == "baseline"
    with pytest.raises(ConfigError, match="differ in metric: 'deeplift' and 'avg'"):
        one.merge(measure_statistics(model, [data], "avg"))
    with pytest.raises(ConfigError, match="differ in task"):
        one.merge(measure_statistics(model, [(data[0], torch.zeros(6, 3))], "deeplift"))
    with pytest.raises(SliceMismatchError, match="two models") as mismatch:
        one.merge(measure_statistics(trace(vgg_like(), data[0]), [data], "deeplift"))
    assert mismatch.value.hint


def test_merging_changes_neither_part(statistics: Statistics) -> None:
    before = statistics.moments.mean.clone()
    statistics.merge(statistics)
    assert torch.equal(statistics.moments.mean, before)


def test_a_file_gives_them_back(statistics: Statistics, tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    statistics.save(path)
    found = Statistics.load(path)
    for field in ("metric", "model_fingerprint", "task", "baseline"):
        assert getattr(found, field) == getattr(statistics, field)
    assert list(found.layers.items()) == list(statistics.layers.items()) == [("0", 9), ("2", 7)]
    for tensor in ("counts", "mean", "squared_deviations"):
        assert torch.equal(getattr(found.moments, tensor), getattr(statistics.moments, tensor))
    assert torch.equal(found.merge(statistics).contributions()["0"], statistics.contributions()["0"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "known format"),
        ({"metric": "tailor"}, "metric, task or model"),
        ({"metric": ["avg"]}, "metric, task or model"),
        ({"task": "ranking"}, "metric, task or model"),
        ({"model_fingerprint": None}, "metric, task or model"),
        ({"baseline": None}, "baseline does not go"),
        ({"metric": "avg"}, "baseline does not go"),
        ({"layers": {"0": 9}}, "no pairs"),
        ({"layers": [["0", 9], ["2"]]}, "no pairs"),
        ({"layers": [["0", 9], ["2", True]]}, "no pairs"),
        ({"layers": [["0", 9], ["2", 8]]}, "mean is torch.float64"),
        ({"layers": [["0", 9], ["0", 7]]}, "twice"),
    ],
    ids=str,
)
def test_false_metadata_are_refused(
    statistics: Statistics, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = tmp_path / "statistics.safetensors"
    statistics.save(path)
    about = {
        "format": 1,
        "metric": "deeplift",
        "model_fingerprint": statistics.model_fingerprint,
        "task": "classification",
        "baseline": statistics.baseline,
        "layers": [["0", 9], ["2", 7]],
    }
    save_file(load_file(path), path, {KEY: json.dumps(about)})
    assert Statistics.load(path).metric == "deeplift"
    save_file(load_file(path), path, {KEY: json.dumps(about | change)})
    with pytest.raises(CheckpointError, match=words) as caught:
        Statistics.load(path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("counts", torch.tensor([3, 3, -3]), "negative"),
        ("counts", torch.tensor([3, 3]), "mean is"),
        ("counts", torch.ones(3), "counts are torch.float32"),
        ("mean", torch.zeros(3, 16), "mean is torch.float32"),
        ("mean", torch.full((3, 16), torch.nan, dtype=torch.float64), "NaN"),
        ("squared_deviations", torch.full((3, 16), -1.0, dtype=torch.float64), "negative"),
        ("other", torch.zeros(1), "its tensors are"),
    ],
)
def test_false_tensors_are_refused(
    statistics: Statistics, tmp_path: Path, name: str, tensor: Tensor, words: str
) -> None:
    path = tmp_path / "statistics.safetensors"
    parts = {part: getattr(statistics.moments, part) for part in ("counts", "mean", "squared_deviations")}
    statistics.save(path)
    metadata = {KEY: json.dumps(_metadata(path))}
    save_file(parts | {name: tensor}, path, metadata)
    with pytest.raises(CheckpointError, match=words):
        Statistics.load(path)


def _metadata(path: Path) -> object:
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return json.loads(header["__metadata__"][KEY])


def test_damaged_and_foreign_files_are_refused(statistics: Statistics, tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    statistics.save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-8], b"PK\x03\x04" + whole):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            Statistics.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no statistics"):
        Statistics.load(path)


def test_running_moments_are_those_of_all_samples_at_once() -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(40, 5, generator=generator, dtype=torch.float64) + 1e4
    labels = torch.randint(0, 6, (40,), generator=generator)
    running = RunningMoments(7, 5, torch.device("cpu"))
    for part, own in zip(values.split(3), labels.split(3), strict=True):
        running.add(part, own)
    for category in range(7):
        own = values[labels == category]
        assert running.moments.counts[category] == len(own)
        expected = own.mean(0) if len(own) else torch.zeros(5, dtype=torch.float64)
        torch.testing.assert_close(running.moments.mean[category], expected, rtol=1e-14, atol=0)
        if len(own):
            torch.testing.assert_close(running.moments.variance[category], own.var(0, correction=0), rtol=1e-9, atol=0)
            torch.testing.assert_close(running.moments.mean_square[category], own.square().mean(0), rtol=1e-13, atol=0)


def test_moments_of_samples_that_belong_to_every_category() -> None:
    values = torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    running = RunningMoments(3, 5, torch.device("cpu"))
    for part in values.split(3):
        running.add_to_all(part)
    assert running.moments.counts.tolist() == [8, 8, 8]
    torch.testing.assert_close(running.moments.mean, values.mean(0), rtol=1e-13, atol=1e-16)
    torch.testing.assert_close(running.moments.variance, values.var(0, correction=0), rtol=1e-12, atol=0)


def test_many_categories_and_single_samples() -> None:
    """Each sample its own category: the means are the samples."""
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 9)).double()
    inputs = torch.randn(9, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = score_neurons(
        trace(network, inputs), list(zip(inputs.split(2), torch.arange(9).split(2), strict=True)), "avg"
    )
    with torch.no_grad():
        torch.testing.assert_close(found["0"], network[:2](inputs), rtol=1e-12, atol=0)
