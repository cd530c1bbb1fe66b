"""After a cut the layers that are left are brought back to what they computed."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from neusemslice import SliceableModel, SlicingConfig, load_checkpoint, restructure, slice_model, trace
from neusemslice.config import Reconstruction
from neusemslice.cutting import cut_neurons
from neusemslice.errors import ConfigError, DatasetError, StoppedError
from neusemslice.progress import Progress
from neusemslice.reconstruction import ReconstructionReport, reconstruct
from neusemslice.reconstruction.frontier import bytes_of_a_sample
from neusemslice.restructuring import Restructured
from tests.neusemslice.graphs import GRAPHS, graph
from tests.neusemslice.networks import mlp, randomised, vgg_like
from tests.neusemslice.test_restructuring import random_keep
from tests.neusemslice.test_slicing import batches
from tests.reference.ridge import ridge

ADJUSTING: tuple[Reconstruction, ...] = ("bias", "norms", "least_squares")


def samples(shape: tuple[int, ...], count: int = 240, seed: int = 1) -> list[Tensor]:
    drawn = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return list(drawn.split(60))


def error(model: SliceableModel, result: Restructured, shape: tuple[int, ...]) -> float:
    """|logits - original logits| over |original logits - their mean|, on samples that nothing was fitted to."""
    inputs = torch.cat(samples(shape, 300, seed=2))
    with torch.no_grad():
        expected, given = model(inputs), result.model(inputs)
    return float((given - expected).norm() / (expected - expected.mean(0)).norm())


def duplicated(make) -> tuple[SliceableModel, dict[str, Tensor]]:
    """A network in which the last neurons of each hidden linear layer and convolution repeat the first ones, halved."""
    network = make().double()
    model = trace(network, torch.zeros(1, *SHAPES[make], dtype=torch.float64))
    keep = {}
    for layer in model.sliceable_layers:
        half = layer.neurons // 2
        producer = model.graph_module.get_submodule(layer.name)
        producer.weight.data[-half:] = producer.weight[:half] / 2
        producer.bias.data[-half:] = producer.bias[:half] / 2
        keep[layer.name] = torch.arange(layer.neurons) < layer.neurons - half
    return trace(model.graph_module, torch.zeros(1, *SHAPES[make], dtype=torch.float64)), keep


def plain_convolutions() -> nn.Sequential:
    return randomised(
        nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3, stride=2, dilation=2),
            nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3),
        )
    )  # fmt: skip


SHAPES = {mlp: (6,), plain_convolutions: (2, 16, 16)}


@pytest.mark.parametrize("make", SHAPES)
def test_neurons_that_repeat_others_are_given_back_exactly(make) -> None:
    model, keep = duplicated(make)
    shape = SHAPES[make]
    cut = restructure(model, keep)
    fitted = restructure(model, keep, reconstruct="least_squares", calibration=samples(shape, 600))
    assert error(model, cut, shape) > 0.1
    assert error(model, fitted, shape) < 1e-5
    assert all(fit.after < 1e-5 for fit in fitted.report.reconstruction.layers.values())


@pytest.mark.parametrize("level", ADJUSTING)
def test_where_nothing_is_removed_no_bit_changes(level: Reconstruction) -> None:
    model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
    keep = {layer.name: torch.ones(layer.neurons, dtype=torch.bool) for layer in model.sliceable_layers}
    result = restructure(model, keep, reconstruct=level, calibration=samples((2, 12, 12)))
    assert result.report.reconstruction.layers == {}
    before = model.graph_module.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in result.model.state_dict().items())


def test_what_comes_before_the_first_loss_stays_as_it_is() -> None:
    model = trace(mlp(), torch.zeros(1, 6))
    keep = {"2": torch.arange(7) < 4}
    result = restructure(model, keep, reconstruct="least_squares", calibration=samples((6,)))
    assert list(result.report.reconstruction.layers) == ["4"]
    for name in ("weight", "bias"):
        assert torch.equal(
            result.model.get_submodule("0").get_parameter(name), model.graph_module.get_parameter("0." + name)
        )
        assert torch.equal(
            result.model.get_submodule("2").get_parameter(name), model.graph_module.get_parameter("2." + name)[:4]
        )


def test_the_head_of_an_mlp_by_a_naive_regression() -> None:
    """What is missing of each logit, regressed on the hidden neurons that are left."""
    model = trace(mlp().double(), torch.zeros(1, 6, dtype=torch.float64))
    kept = torch.tensor([True, False, True, True, False, True, True])
    data = samples((6,))
    result = restructure(model, {"2": kept}, reconstruct="least_squares", calibration=data)
    inputs = torch.cat(data)
    hidden = nn.Sequential(*(model.graph_module.get_submodule(str(number)) for number in range(4)))(inputs)[:, kept]
    head = model.graph_module.get_submodule("4")
    missing = model(inputs) - (hidden @ head.weight[:, kept].T + head.bias)
    fit = result.report.reconstruction.layers["4"]
    weight, bias = ridge(hidden, missing, fit.penalty)
    fitted = result.model.get_submodule("4")
    torch.testing.assert_close(fitted.weight.detach(), head.weight[:, kept] + weight, rtol=0, atol=1e-8)
    torch.testing.assert_close(fitted.bias.detach(), head.bias + bias, rtol=0, atol=1e-8)
    spread = (model(inputs) - model(inputs).mean(0)).norm()
    assert fit.before == pytest.approx(float(missing.norm() / spread))


def test_biases_make_the_means_right() -> None:
    model = trace(vgg_like().double(), torch.zeros(1, 2, 12, 12, dtype=torch.float64))
    data = samples((2, 12, 12))
    result = restructure(model, random_keep(model), reconstruct="bias", calibration=data)
    inputs = torch.cat(data)
    torch.testing.assert_close(result.model(inputs).mean(0), model(inputs).mean(0), rtol=0, atol=1e-10)
    cut = restructure(model, random_keep(model))
    for name, parameter in cut.model.named_parameters():
        if name.endswith("weight"):
            assert torch.equal(parameter, result.model.get_parameter(name))


def test_norms_get_the_statistics_of_what_they_read_now() -> None:
    """The norm behind the flatten reads what lost neurons changed; the first norm reads what it always read."""
    model = trace(vgg_like().double(), torch.zeros(1, 2, 12, 12, dtype=torch.float64))
    data, keep = samples((2, 12, 12)), {"0": torch.arange(6) < 4}
    result = restructure(model, keep, reconstruct="norms", calibration=data)
    assert list(result.report.reconstruction.layers) == ["8"]
    value = torch.cat(data)
    for number in range(8):
        value = result.model.get_submodule(str(number))(value)
    norm = result.model.get_submodule("8")
    torch.testing.assert_close(norm.running_mean, value.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(norm.running_var, value.var(0), rtol=0, atol=1e-12)


def test_a_layer_without_a_bias_is_shifted_in_its_norm() -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 5, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip
    model = trace(randomised(network).double(), torch.zeros(1, 2, 2, 2, dtype=torch.float64))
    result = restructure(model, {"0": torch.arange(6) < 3}, reconstruct="bias", calibration=samples((2, 2, 2)))
    assert result.model.get_submodule("2").bias is None
    assert not torch.equal(
        result.model.get_submodule("3").running_mean, model.graph_module.get_submodule("3").running_mean
    )
    assert result.model.get_submodule("5").bias.shape == (5,)
    assert result.report.parameters_after == sum(parameter.numel() for parameter in result.model.parameters())


@pytest.mark.parametrize("branches", ["union", "scatter"])
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_of_branches(name: str, branches: str) -> None:
    """Sums, gates, concatenations, groups, depthwise convolutions and attention: closer to the original in all."""
    shape = GRAPHS[name][1]
    model = trace(graph(name).double(), torch.zeros(1, *shape, dtype=torch.float64))
    keep = random_keep(model, seed=1)
    errors = {
        level: error(
            model, restructure(model, keep, branches=branches, reconstruct=level, calibration=samples(shape)), shape
        )
        for level in ("none", "bias", "least_squares")
    }
    assert errors["bias"] < errors["none"]
    assert errors["least_squares"] < min(errors["none"], 1.01 * errors["bias"])


@pytest.mark.parametrize("level", ADJUSTING)
def test_the_size_of_the_batches_does_not_matter(level: Reconstruction) -> None:
    model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
    inputs = torch.cat(samples((2, 12, 12))).float()
    results = [
        restructure(model, random_keep(model), reconstruct=level, calibration=inputs.split(size)).model.state_dict()
        for size in (7, 240)
    ]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_labels_are_not_looked_at() -> None:
    model = trace(mlp(), torch.zeros(1, 6))
    inputs = samples((6,))
    pairs = [(part, torch.full((len(part),), -1)) for part in inputs]
    results = [
        restructure(model, random_keep(model), reconstruct="least_squares", calibration=data).model.state_dict()
        for data in (inputs, pairs)
    ]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("level", ADJUSTING)
def test_the_model_stays_as_it_is(level: Reconstruction) -> None:
    model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
    before = {name: tensor.clone() for name, tensor in model.graph_module.state_dict().items()}
    result = restructure(model, random_keep(model), reconstruct=level, calibration=samples((2, 12, 12)))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.graph_module.state_dict().items())
    assert all(parameter.requires_grad for parameter in result.model.parameters())
    assert not result.model.training


def test_a_memory_budget_takes_fewer_samples_evenly() -> None:
    """By hand: the most is held while the first ReLU runs, its input and its output in both networks."""
    model = trace(mlp(), torch.zeros(1, 6))
    keep, inputs = random_keep(model), torch.cat(samples((6,))).float()
    cut, left = cut_neurons(model, keep), int(keep["0"].sum())

    def fitted(calibration: Sequence[Tensor], budget: int) -> tuple[dict[str, Tensor], ReconstructionReport]:
        smaller = restructure(model, keep).model
        assert bytes_of_a_sample(cut, smaller) == 2 * 4 * (9 + left)
        report = reconstruct(
            cut, smaller, calibration, "least_squares", memory_budget_bytes=budget, progress=Progress()
        )
        return smaller.state_dict(), report

    few, report = fitted(inputs.split(50), 60 * 8 * (9 + left))
    assert (report.samples, report.samples_given) == (60, 240)
    alone, _ = fitted([inputs[::4]], 2**30)
    assert all(torch.equal(few[name], alone[name]) for name in few)


def test_a_produced_checkpoint_holds_what_was_fitted(tmp_path) -> None:
    model = trace(graph("mobile"), torch.zeros(1, 2, 8, 8))
    result = restructure(model, random_keep(model), reconstruct="least_squares", calibration=samples((2, 8, 8)))
    result.save(tmp_path / "small.safetensors")
    inputs = torch.cat(samples((2, 8, 8))).float()
    assert torch.equal(load_checkpoint(tmp_path / "small.safetensors")(inputs), result.model(inputs))
    done = result.report.to_dict()["reconstruction"]
    assert (done["level"], done["samples"], done["samples_given"]) == ("least_squares", 240, 240)
    assert all(0 <= fit["after"] < 2 for fit in done["layers"].values())


def test_without_samples_it_is_refused() -> None:
    model = trace(mlp(), torch.zeros(1, 6))
    for level in ADJUSTING:
        with pytest.raises(ConfigError) as refused:
            restructure(model, random_keep(model), reconstruct=level)
        assert refused.value.field == "calibration"


def test_deeparc_sews_for_itself() -> None:
    model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
    found = slice_model(model, batches((2, 12, 12)), SlicingConfig(strategy="deeparc", threshold=0.5))
    with pytest.raises(ConfigError) as refused:
        restructure(model, found, reconstruct="least_squares", calibration=samples((2, 12, 12)))
    assert refused.value.field == "reconstruct"


@pytest.mark.parametrize(
    ("calibration", "what"),
    [
        ([], "0 calibration samples"),
        ([torch.zeros(3, 6)], "3 calibration samples"),
        ([torch.zeros(8, 5)], r"batch 0 is \(8, 5\)"),
        ([torch.zeros(8, 6), torch.full((8, 6), torch.nan)], "batch 1 holds NaN"),
        (["text"], "batch 0 is str"),
        ([torch.full((8, 6), 3e38)], "'2' on the calibration data are NaN"),
    ],
)
def test_bad_samples_are_refused(calibration: list[object], what: str) -> None:
    model = trace(mlp(), torch.zeros(1, 6))
    with pytest.raises(DatasetError, match=what) as refused:
        restructure(model, random_keep(model), reconstruct="least_squares", calibration=calibration)
    assert refused.value.hint


def test_progress_and_stopping() -> None:
    model = trace(mlp(), torch.zeros(1, 6))
    seen: list[tuple[str, int, int]] = []
    restructure(
        model,
        random_keep(model),
        reconstruct="bias",
        calibration=samples((6,)),
        on_progress=lambda *step: seen.append(step),
    )
    assert [step for step in seen if step[0] == "reconstruct"] == [("reconstruct", done, 5) for done in range(6)]
    with pytest.raises(StoppedError):
        restructure(
            model, random_keep(model), reconstruct="bias", calibration=samples((6,)),
            should_stop=lambda: bool(seen) and seen.append(("", 0, 0)) is None and len(seen) > 15,
        )  # fmt: skip
