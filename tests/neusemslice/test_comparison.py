"""Strategies, metrics and cuts on small networks."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from torch import Tensor, nn

from neusemslice import (
    ComparisonConfig,
    ModelSlice,
    SliceableModel,
    SlicingConfig,
    compare,
    evaluate,
    restructure,
    trace,
)
from neusemslice.comparison import Comparison
from neusemslice.comparison.charts import NO_VALUE, percent
from neusemslice.comparison.curves import AccuracyCurve, Point
from neusemslice.comparison.cuts import find_cuts
from neusemslice.comparison.pilot import keep_without, samples_of, study_categories
from neusemslice.comparison.report import summary, to_html
from neusemslice.comparison.results import COLUMNS, ComparedModel
from neusemslice.errors import ConfigError, DatasetError, StoppedError, UnsupportedModelError
from neusemslice.progress import Progress
from neusemslice.restructuring import parameters_after
from neusemslice.slicing import slice_model
from tests.neusemslice.networks import mlp, vgg_like

HOSTILE = "<script>alert('&')</script>\"x"
CONFIG = ComparisonConfig(metrics=("avg", "taylor"), compressions=(0.2, 0.5), estimator="biased")


def batches(shape: tuple[int, ...], categories: int, samples: int = 24) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    inputs, labels = torch.randn(samples, *shape, generator=generator), torch.arange(samples) % categories
    inputs += labels.view(-1, *[1] * len(shape))
    return list(zip(inputs.split(10), labels.split(10), strict=True))


@pytest.fixture(scope="module")
def models() -> dict[str, SliceableModel]:
    named = {}
    for seed, name in enumerate((HOSTILE, "second", "third")):
        network = mlp()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        named[name] = trace(network, torch.zeros(1, 6))
    return named


@pytest.fixture(scope="module")
def compared(models: dict[str, SliceableModel]) -> Comparison:
    data = batches((6,), 3)
    return compare(models, data, data, CONFIG, category_names=("cat", HOSTILE, "dog"))


def test_every_point_is_the_restructured_network(models: dict[str, SliceableModel], compared: Comparison) -> None:
    data = batches((6,), 3)
    curve = next(c for c in compared.curves if (c.model, c.strategy, c.metric) == ("second", "semantic", "taylor"))
    slice_ = slice_model(models["second"], data, SlicingConfig(metric="taylor", estimator="biased"))
    assert len(curve.points) == 2
    for point in curve.points:
        smaller = restructure(models["second"], slice_.at(point.cut))
        assert point.parameters == smaller.report.parameters_after
        assert point.compression_rate == smaller.report.compression_rate
        assert point.flops == smaller.report.flops_after
        assert point.accuracy == evaluate(smaller.model, data).accuracy
        assert point.per_category == evaluate(smaller.model, data).per_category
    assert compared.models[1].accuracy == evaluate(models["second"], data).accuracy
    assert compared.models[1].parameters == 6 * 9 + 9 + 9 * 7 + 7 + 7 * 3 + 3


def test_each_strategy_meets_each_metric_and_random_comes_once(compared: Comparison) -> None:
    runs = [(curve.strategy, curve.metric) for curve in compared.curves if curve.model == "third"]
    wanted = [(name, metric) for name in ("semantic", "categorywise", "global") for metric in ("avg", "taylor")]
    assert runs == [*wanted, ("random", None)]
    assert [len(area.per_model) for area in compared.areas] == [3] * 7


def test_areas_winners_and_tests_fit_the_points(compared: Comparison) -> None:
    low, high = compared.common_range
    assert low == 0
    assert high == min(max(point.compression_rate for point in curve.points) for curve in compared.curves)
    for metric in ("avg", "taylor"):
        areas = compared.areas_with(metric)
        assert set(areas) == set(CONFIG.strategies)
        assert areas[compared.winners[metric]].mean == pytest.approx(
            max(area.mean for area in areas.values()), abs=1e-9
        )
    assert len(compared.tests) == 2 * 6
    for test in compared.tests:
        areas = compared.areas_with(test.metric)
        assert test.mean_difference == pytest.approx(areas[test.first].mean - areas[test.second].mean)


def test_a_single_model_has_no_tests(models: dict[str, SliceableModel]) -> None:
    data = batches((6,), 3)
    config = ComparisonConfig(strategies=("semantic", "random"), metrics=("avg",), compressions=(0.3,), pilot=False)
    found = compare(models["second"], data, data, config)
    assert (found.tests, found.pilot) == ((), ())
    assert found.categories == ("0", "1", "2")
    assert "one model there is nothing to pair" in to_html(found)
    assert summary(found).startswith("It is a tie")  # this network keeps a third of these labels however it is cut


def test_equal_areas_are_a_tie(compared: Comparison) -> None:
    assert not compared.is_tied
    same = {curve.model: curve.points for curve in compared.curves}
    tied = replace(compared, curves=tuple(replace(curve, points=same[curve.model]) for curve in compared.curves))
    assert tied.is_tied
    assert summary(tied).startswith("It is a tie: every strategy keeps")


def by_hand(accuracies: dict[tuple[str, str | None], float]) -> Comparison:
    """One model, cut once in half by each strategy and metric, at these accuracies."""
    strategies = tuple(dict.fromkeys(strategy for strategy, _ in accuracies))
    config = ComparisonConfig(strategies=strategies, metrics=("avg", "taylor"), compressions=(0.5,), pilot=False)
    curves = (
        AccuracyCurve("m", strategy, metric, (Point(0.5, 0.5, 50, 50, accuracy, ()),))
        for (strategy, metric), accuracy in accuracies.items()
    )
    return Comparison(config, ("a", "b"), "test", (ComparedModel("m", 100, 100, 0.9, ()),), tuple(curves), ())


def test_a_tie_of_some_is_told_from_a_win() -> None:
    found = by_hand(
        {
            ("semantic", "avg"): 0.7,
            ("semantic", "taylor"): 0.8,
            ("global", "avg"): 0.7 + 1e-10,
            ("global", "taylor"): 0.5,
            ("random", None): 0.5 + 1e-10,
        }
    )
    assert found.leaders == {"avg": ("semantic", "global"), "taylor": ("semantic",)}
    assert found.ties == {"avg": ("semantic", "global")}
    assert found.to_dict()["ties"] == {"avg": ["semantic", "global"]}
    assert not found.is_tied
    words = summary(found)
    assert "kept by semantic and global (a tie) with avg; by semantic with taylor. " in words
    assert "Best of all is semantic with taylor: 85.0" in words
    assert "As good as the random choice, no better: global with taylor." in words
    assert "Worse than the random choice" not in words
    assert to_html(found).count('class="best"') >= 4


def test_a_tie_with_the_random_choice_is_no_win() -> None:
    found = by_hand({("semantic", "avg"): 0.7, ("semantic", "taylor"): 0.6, ("random", None): 0.7})
    words = summary(found)
    assert "kept by semantic and random (a tie) with avg; by random with taylor. " in words
    assert "Best of all are semantic with avg and random, in a tie: 80.0" in words
    assert "As good as the random choice, no better: semantic with avg." in words
    assert words.endswith("Worse than the random choice: semantic with taylor.")
    assert "against" not in words


def test_given_cuts_are_used(models: dict[str, SliceableModel]) -> None:
    data = batches((6,), 3)
    config = ComparisonConfig(metrics=("avg",), thresholds=(0.8, 0.95), fractions=(0.5,), pilot=False)
    found = compare(models["second"], data, data, config)
    cuts = {curve.strategy: [point.cut for point in curve.points] for curve in found.curves}
    assert cuts == {"semantic": [0.95, 0.8], "categorywise": [0.5], "global": [0.5], "random": [0.5]}


@pytest.mark.parametrize("strategy", ["semantic", "categorywise", "global", "random"])
def test_the_cuts_are_the_nearest_of_all(strategy: str) -> None:
    model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
    slice_ = slice_model(model, batches((2, 12, 12), 3), SlicingConfig(strategy=strategy, metric="avg"))
    parameters = sum(parameter.numel() for parameter in model.graph_module.parameters())

    def compression(cut: float) -> float:
        return 1 - parameters_after(model, slice_.at(cut).merged()) / parameters

    reachable = [compression(number / 150) for number in range(1, 151)]
    wanted = (0.1, 0.33, 0.5, 0.97)
    cuts = find_cuts(model, slice_, wanted, parameters, Progress())
    assert cuts == sorted(set(cuts), reverse=True)
    for compression_wanted in wanted:
        distance = min(abs(compression(cut) - compression_wanted) for cut in cuts)
        assert distance <= min(abs(rate - compression_wanted) for rate in reachable) + 1e-12


@pytest.fixture(scope="module")
def answered() -> Comparison:
    """Category 0 is seen by neuron 0 alone, category 1 by neuron 5 alone, category 2 by none: a known answer."""
    network = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3))
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(10))
        network[0].bias.zero_()
        network[2].weight.zero_()
        network[2].weight[0, 0] = network[2].weight[1, 5] = 1
        network[2].bias.copy_(torch.tensor([0.0, 0.0, 0.5]))
    labels = torch.tensor([0] * 6 + [1] * 4 + [2] * 4)
    inputs = 0.01 * torch.rand(14, 10, generator=torch.Generator().manual_seed(0))
    inputs[labels == 0, 0] += 1
    inputs[labels == 1, 5] += 1
    data = list(zip(inputs.split(5), labels.split(5), strict=True))
    config = ComparisonConfig(strategies=("random",), metrics=("avg",), compressions=(0.3,))
    return compare(trace(network, torch.zeros(1, 10)), data, data, config)


class TestPilot:
    def test_the_own_order_finds_each_categorys_neuron_first(self, answered: Comparison) -> None:
        (study,) = answered.pilot
        ranking = study.rankings[0]
        assert (ranking.metric, study.categories) == ("avg", (0, 1, 2))
        assert ranking.own == ((0.0, 0.0, 1.0), *[(1.0, 1.0, 1.0)] * 9)
        assert ranking.own_mean() == pytest.approx((1 / 3, *[1.0] * 9))

    def test_the_order_over_all_data_finds_the_more_frequent_first(self, answered: Comparison) -> None:
        ranking = answered.pilot[0].rankings[0]
        assert ranking.overall == pytest.approx((8 / 14, 10 / 14, *[1.0] * 8))
        assert ranking.overall_per_category[:2] == ((0.0, 1.0, 1.0), (1.0, 0.0, 1.0))

    def test_the_control_hits_each_neuron_in_some_tenth(self, answered: Comparison) -> None:
        control = answered.pilot[0].rankings[-1]
        assert (control.metric, control.own) == (None, None)
        assert sorted(control.overall) == pytest.approx([8 / 14, 10 / 14, *[1.0] * 8])

    def test_tenths_cover_every_neuron_once_and_never_all_of_a_layer(self) -> None:
        for neurons in (1, 3, 10, 37):
            orders = {"layer": torch.randperm(neurons, generator=torch.Generator().manual_seed(1))[None]}
            masks = [keep_without(orders, 0, number).get("layer") for number in range(10)]
            silenced = sum((~mask).long() for mask in masks if mask is not None)
            assert (silenced == 1).all() if neurons > 1 else masks.count(None) == 1
        orders = {"layer": torch.tensor([[9, 3, 0, 1, 2, 4, 5, 6, 7, 8]])}
        assert (~keep_without(orders, 0, 1)["layer"]).nonzero().flatten().tolist() == [3]

    def test_categories_are_spread_over_those_with_samples(self) -> None:
        assert study_categories((0.1, None, 0.3), 10) == (0, 2)
        assert study_categories([0.5] * 101, 3) == (0, 50, 100)

    def test_one_categorys_samples(self) -> None:
        found = samples_of([(torch.arange(4.0)[:, None], torch.tensor([0, 1, 1, 2]))] * 2, 1)
        assert [inputs.flatten().tolist() for inputs, _ in found] == [[1, 2], [1, 2]]
        assert all((labels == 1).all() for _, labels in found)


@pytest.fixture(scope="module")
def folder(compared: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison") / "new"
    compared.write(folder)
    return folder


class TestFiles:
    def test_the_json_is_what_to_dict_gives(self, compared: Comparison, folder: Path) -> None:
        def refuse(constant: str) -> None:
            raise AssertionError(constant)

        read = json.loads((folder / "comparison.json").read_text(), parse_constant=refuse)
        assert read == compared.to_dict()
        assert read["models"][0]["name"] == HOSTILE
        assert read["areas"][0]["mean"] == compared.areas[0].mean
        assert len(read["curves"]) == 3 * 7
        assert len(read["pilot"]) == 3

    def test_the_table_has_a_row_for_each_point(self, compared: Comparison, folder: Path) -> None:
        with (folder / "comparison.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        points = [(curve, point) for curve in compared.curves for point in curve.points]
        assert tuple(rows[0]) == COLUMNS
        assert len(rows) == len(points)
        for row, (curve, point) in zip(rows, points, strict=True):
            assert (row["model"], row["strategy"], row["metric"]) == (curve.model, curve.strategy, curve.metric or "")
            assert (float(row["cut"]), float(row["accuracy"])) == (point.cut, point.accuracy)
            assert int(row["parameters"]) == point.parameters

    def test_the_page_escapes_every_name_and_loads_nothing(self, folder: Path) -> None:
        html = (folder / "report.html").read_text()
        assert "<script" not in html
        assert "&lt;script&gt;" in html
        page = Page()
        page.feed(html)
        assert page.open == []
        assert not page.tags & {"script", "img", "link", "iframe", "a", "object", "form"}
        assert not page.attributes & {"href", "src", "onload", "onclick", "xlink:href"}
        assert "http" not in html.replace("http-equiv", "")

    def test_the_charts_are_well_formed_and_described(self, folder: Path) -> None:
        html = (folder / "report.html").read_text()
        charts = [chart[: chart.index("</svg>")] for chart in html.split("<svg")[1:]]
        charts = [ET.fromstring(f"<svg{chart}</svg>") for chart in charts if "<desc>" in chart]
        assert len(charts) == 2 + 2 * 3
        for chart in charts:
            assert chart.find("title").text
            assert "semantic" in chart.find("desc").text or "avg" in chart.find("desc").text
            for line in chart.iter("polyline"):
                places = [tuple(map(float, place.split(","))) for place in line.get("points").split()]
                assert all(0 <= left <= 480 and 0 <= top <= 300 for left, top in places)


class Page(HTMLParser):
    """Notes tags and attributes, and which tags were left open."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_curves_without_a_common_range_have_no_winner(models: dict[str, SliceableModel]) -> None:
    data = batches((6,), 3)
    config = ComparisonConfig(strategies=("global",), metrics=("avg",), fractions=(1.0,), pilot=False)
    found = compare(models["second"], data, data, config)
    assert (found.common_range, found.areas, found.winners) == (None, (), {})
    assert found.to_dict()["common_range"] is None
    assert "no strategy can be said to win" in to_html(found)


class TestDeepArc:
    """A strategy with few cuts of its own, whatever the metrics and compressions."""

    @staticmethod
    def compared(rates: tuple[float, ...], unsewn: tuple[float, ...] = ()) -> Comparison:
        """As if deeparc had these compressions, one point lost each; global reaches 60 %."""
        config = ComparisonConfig(strategies=("global", "deeparc"), metrics=("avg",), pilot=False)

        def curve(strategy: str, metric: str | None, rates: tuple[float, ...]) -> AccuracyCurve:
            points = (Point(0.9 + n / 100, rate, 100, 100, 0.8 - n / 100, ()) for n, rate in enumerate(rates))
            return AccuracyCurve(HOSTILE, strategy, metric, tuple(points), unsewn if strategy == "deeparc" else ())

        curves = curve("global", "avg", (0.3, 0.6)), curve("deeparc", None, rates)
        return Comparison(config, ("a", "b"), "train", (ComparedModel(HOSTILE, 100, 100, 0.9, ()),), curves, ())

    def test_runs_once_at_its_own_thresholds(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.ReLU())], nn.Linear(6, 3))
        model, data = trace(network, torch.zeros(1, 6)), batches((6,), 3)
        config = ComparisonConfig(
            strategies=("deeparc",), metrics=("avg", "var"), deeparc_thresholds=(0.05, 1.0), pilot=False
        )
        found = compare(model, data, data, config, calibration=data[:2])
        (curve,) = found.curves
        slice_ = slice_model(model, data, SlicingConfig(strategy="deeparc", threshold=0.05))
        sewn = restructure(model, slice_, calibration=data[:2])
        assert (curve.metric, [point.cut for point in curve.points]) == (None, [1.0, 0.05])
        assert (curve.points[0].compression_rate, curve.points[0].accuracy) == (0.0, found.models[0].accuracy)
        assert curve.points[1].parameters == sewn.report.parameters_after < found.models[0].parameters
        assert curve.points[1].accuracy == evaluate(sewn.model, data).accuracy

    def test_an_unsewable_cut_is_named_and_the_others_are_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(model: SliceableModel, slice_: ModelSlice, **others: object) -> object:
            if slice_.config.threshold == 0.9:
                raise UnsupportedModelError("no layer fits", node="x")
            return restructure(model, slice_, **others)

        monkeypatch.setattr("neusemslice.comparison.curves.restructure", refuse)
        model, data = trace(mlp(), torch.zeros(1, 6)), batches((6,), 3)
        config = ComparisonConfig(strategies=("deeparc",), metrics=("avg",), deeparc_thresholds=(0.9, 1.0), pilot=False)
        found = compare(model, data, data, config)
        assert (found.curves[0].unsewn, [point.cut for point in found.curves[0].points]) == ((0.9,), [1.0])
        assert "At threshold 0.9 no sewing layer fits model" in to_html(found)

    @pytest.mark.parametrize("rates", [(), (0.0, 0.0), (0.4,), (0.4, 0.4), (0.1, 0.2), (-0.2, -0.1), (-0.2, 0.6)])
    def test_too_few_or_too_small_compressions_do_not_narrow_the_range(self, rates: tuple[float, ...]) -> None:
        found = self.compared(rates)
        assert (found.left_out, found.common_range) == (("deeparc",), (0.0, 0.6))
        assert [area.strategy for area in found.areas] == ["global"]
        assert found.winners == {"avg": "global"}
        largest = percent(max(rates)) if max(rates, default=0) > 0 else "nothing"
        assert f"to be averaged: {'at most ' if largest != 'nothing' else ''}it removes {largest}" in summary(found)
        assert "It has no area" in to_html(found)
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["left_out"] == ["deeparc"]

    def test_two_far_enough_count(self) -> None:
        found = self.compared((0.2, 0.4))
        assert (found.left_out, found.common_range) == ((), (0.0, 0.4))
        areas = found.areas_with("avg")
        assert areas["deeparc"].mean == pytest.approx(((0.9 + 0.8) / 2 + (0.8 + 0.79) / 2) / 2)
        assert areas["global"].mean == pytest.approx((0.3 * (0.9 + 0.8) / 2 + 0.1 * (0.8 + 0.8 - 0.01 / 3) / 2) / 0.4)

    def test_the_page_tells_what_it_removes_and_adds(self) -> None:
        html = to_html(self.compared((-0.125, 0.25), unsewn=(0.5, 0.6)))
        assert "deeparc removes -12.5\u202f% to 25.0\u202f% of the parameters" in html
        assert "At threshold 0.9 its sewing layers are larger than what they replace." in html
        assert "At thresholds 0.5, 0.6 no sewing layer fits" in html
        assert "removes nothing" in to_html(self.compared((0.0, 0.0)))
        assert HOSTILE not in html
        Page().feed(html)

    def test_has_a_value_only_where_it_was_cut(self) -> None:
        html = to_html(self.compared((0.2, 0.4)))
        row = html[html.index("Accuracy at equal compression") :]
        row = row[row.index('<th scope="row">deeparc</th>') :].split("</tr>")[0]
        values = re.findall(r'<td(?: class="best")?>([^<]*)</td>', row)
        assert values == [NO_VALUE, "80.00\u202f%", NO_VALUE, "79.00\u202f%", *[NO_VALUE] * 3]

    def test_of_several_models_each_has_its_line(self) -> None:
        one, curves = self.compared((0.2, 0.4)), []
        for name in ("first", "second"):
            curves += [replace(curve, model=name) for curve in one.curves]
        models = tuple(replace(one.models[0], name=name) for name in ("first", "second"))
        html = to_html(replace(one, models=models, curves=tuple(curves)))
        assert html.count("deeparc: 80.00\u202f% at 20.0\u202f% removed") == 2
        assert html.split('<ul class="legend">')[1].split("</ul>")[0].count("deeparc") == 1


@pytest.mark.parametrize(("evaluated_on", "words"), [("test", "the test data."), ("train", "has seen too.")])
def test_the_page_says_what_accuracy_was_measured_on(compared: Comparison, evaluated_on: str, words: str) -> None:
    assert f"evaluated on the {evaluated_on} data" in to_html(replace(compared, evaluated_on=evaluated_on))
    assert words in to_html(replace(compared, evaluated_on=evaluated_on))


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx"])
def test_a_spreadsheet_calculates_no_name_and_all_numbers(compared: Comparison, tmp_path: Path, name: str) -> None:
    point = replace(compared.curves[0].points[0], compression_rate=-0.25)
    curve = replace(compared.curves[0], model=name, points=(point,))
    model = replace(compared.models[0], name=name)
    replace(compared, models=(model,), curves=(curve,), pilot=()).write(tmp_path)
    with (tmp_path / "comparison.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["model"], row["compression_rate"]) == (f"'{name}", "-0.25")
    assert json.loads((tmp_path / "comparison.json").read_text())["models"][0]["name"] == name


def test_progress_and_stopping(models: dict[str, SliceableModel]) -> None:
    data, seen = batches((6,), 3), []
    config = ComparisonConfig(strategies=("global",), metrics=("avg",), compressions=(0.3, 0.6))
    compare(models["second"], data, data, config, on_progress=lambda *step: seen.append(step))
    assert seen[-1] == ("pilot", 50, 50)
    assert ("evaluate", 2, 2) in seen
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == ["score", "coverage", "cuts", "evaluate", "pilot"]
    for stage in stages:
        done = [step[1] for step in seen if step[0] == stage]
        assert done == sorted(done)
        assert done[0] == 0 or stage == "coverage"
    with pytest.raises(StoppedError):
        compare(models["second"], data, data, config, should_stop=lambda: len(seen) > 0)


def test_what_cannot_be_compared_is_refused(models: dict[str, SliceableModel]) -> None:
    data = batches((6,), 3)
    with pytest.raises(ConfigError, match="no model"):
        compare({}, data, data)
    with pytest.raises(ConfigError, match="2 are named"):
        compare(models, data, data, category_names=("a", "b"))
    with pytest.raises(DatasetError, match="read only once"):
        compare(models, data, iter(data))
    targets = [(inputs, torch.zeros(len(inputs), 3)) for inputs, _ in data]
    with pytest.raises(DatasetError, match="real numbers as labels"):
        compare(models["second"], targets, targets, CONFIG)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"strategies": ()}, "strategies"),
        ({"strategies": ("semantic", "semantic")}, "strategies"),
        ({"metrics": ("avg", "avg")}, "metrics"),
        ({"compressions": (0.5, 1.0)}, "compressions"),
        ({"compressions": (0.5, 0.5)}, "compressions"),
        ({"compressions": (0.5,), "fractions": (0.5,)}, "compressions"),
        ({"thresholds": (0.9,)}, "thresholds"),
        ({"fractions": (0.9,)}, "fractions"),
        ({"thresholds": (0.9,), "fractions": (1.5,)}, "fraction"),
        ({"pilot_categories": 0}, "pilot_categories"),
        ({"strategies": ("deeparc",), "deeparc_thresholds": ()}, "deeparc_thresholds"),
        ({"strategies": ("deeparc",), "deeparc_thresholds": (1.5,)}, "threshold"),
        ({"samples_per_category": 1}, "samples_per_category"),
    ],
)
def test_a_config_is_checked_at_birth(values: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ComparisonConfig(**values)
    assert caught.value.field == field


def test_a_config_as_json() -> None:
    values = ComparisonConfig().to_dict()
    assert values["compressions"] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert json.loads(json.dumps(values)) == values
