"""Accuracy, loss and cost of a network."""

import math

import pytest
import torch
from torch import nn

from neusemslice import evaluate, trace
from neusemslice.errors import DatasetError
from neusemslice.profiling import count_flops, count_parameters, measure_latency
from tests.neusemslice.networks import mlp, vgg_like


class Identity(nn.Module):
    """Its inputs are its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.one


def test_hand_computed() -> None:
    """Two right of category 0, one wrong of category 1, none of category 2."""
    logits = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0], [3.0, 1.0, 0.0]])
    found = evaluate(Identity(), [(logits[:2], torch.tensor([0, 0])), (logits[2:], torch.tensor([1]))])
    loss = [
        math.log(sum(math.exp(v) for v in row)) - row[label]
        for row, label in zip(logits.tolist(), [0, 0, 1], strict=True)
    ]
    assert (found.accuracy, found.samples) == (2 / 3, 3)
    assert found.per_category == (1.0, 0.0, None)
    assert found.loss == pytest.approx(sum(loss) / 3)
    assert found.to_dict()["per_category"] == [1.0, 0.0, None]


def test_dropout_and_norms_are_off_and_modes_come_back() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9)).train()
    network[1].eval()
    before = network[0].running_mean.clone()
    first = evaluate(network, [(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))])
    assert [network.training, network[0].training, network[1].training] == [True, True, False]
    assert torch.equal(network[0].running_mean, before)
    assert first.samples == 8


def test_modes_come_back_after_a_failure() -> None:
    network = mlp().train()
    with pytest.raises(DatasetError):
        evaluate(network, [(torch.zeros(1, 6), torch.tensor([3]))])
    assert network.training


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "no sample"),
        ([(torch.zeros(2, 6), torch.tensor([0, 3]))], "go from 0 to 3"),
        ([(torch.zeros(2, 6), torch.tensor([-1, 0]))], "go from -1"),
        ([(torch.zeros(2, 6), torch.zeros(2))], "float32.*3 outputs"),
        ([(torch.zeros(2, 6), torch.full((2, 3), torch.inf))], "targets of batch 0 hold NaN"),
        ([(torch.zeros(2, 6), torch.zeros(2, 3)), (torch.zeros(2, 6), torch.zeros(2).long())], "(?s)batch 1.*int64"),
        ([(torch.zeros(2, 6), torch.zeros(3, dtype=torch.long))], "2 inputs and 3 labels"),
        ([torch.zeros(2, 6)], "not a pair"),
    ],
)
def test_bad_data_is_refused(data: list[object], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        evaluate(mlp(), data)


def test_a_traced_model_evaluates_as_its_network() -> None:
    network = vgg_like()
    data = [(torch.randn(20, 2, 12, 12), torch.arange(20) % 3)]
    assert evaluate(trace(network, data[0][0]), data) == evaluate(network, data)


def test_parameters_and_operations_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 5))
    assert count_parameters(network) == (18 + 2) + 4 + (160 + 5)
    assert count_flops(network, (1, 4, 4)) == 2 * (2 * 16 * 9) + 2 * (32 * 5)


def test_latency_is_a_time_and_leaves_the_network_alone() -> None:
    network = vgg_like().train()
    assert 0 < measure_latency(network, (2, 12, 12), batch_size=2, repeats=3) < 1
    assert network.training


def test_the_loss_behind_a_softmax_is_that_of_its_logits() -> None:
    data = [(torch.randn(20, 6), torch.arange(20) % 3)]
    plain, softmax = mlp(), nn.Sequential(*mlp(), nn.Softmax(1))
    assert evaluate(softmax, data).loss == pytest.approx(evaluate(plain, data).loss, rel=1e-5)
    assert evaluate(trace(softmax, data[0][0]), data).loss == pytest.approx(evaluate(plain, data).loss, rel=1e-5)


def test_an_output_that_is_not_finite_has_no_accuracy() -> None:
    with pytest.raises(DatasetError, match="NaN or infinite"):
        evaluate(mlp(), [(torch.full((4, 6), float("nan")), torch.zeros(4, dtype=torch.long))])


def test_a_regression_by_hand() -> None:
    """Errors 1, 0, 2 on the first output, whose targets 0, 2, 4 vary by 8; the second output's targets are constant."""
    outputs = torch.tensor([[1.0, 5.0], [2.0, 5.0], [2.0, 8.0]])
    targets = torch.tensor([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    found = evaluate(Identity(), [(outputs[:1], targets[:1]), (outputs[1:], targets[1:])])
    assert found.accuracy is None
    assert found.samples == 3
    assert found.loss == pytest.approx((1 + 4 + 9) / 6)
    assert found.per_category == (pytest.approx(1 - 5 / 8), None)
    assert found.to_dict()["accuracy"] is None


def test_r_squared_does_not_suffer_from_a_large_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(64, 1, generator=generator, dtype=torch.float64) + 1e7
    outputs = targets + 0.5 * torch.randn(64, 1, generator=generator, dtype=torch.float64)
    found = evaluate(Identity().double(), list(zip(outputs.split(5), targets.split(5), strict=True)))
    expected = 1 - (outputs - targets).square().sum() / (targets - targets.mean()).square().sum()
    assert found.per_category[0] == pytest.approx(float(expected), rel=1e-9)


def test_a_traced_regression_of_one_output_takes_flat_targets() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1)).eval()
    inputs, targets = torch.randn(9, 4), torch.randn(9)
    found = evaluate(trace(network, inputs), [(inputs, targets)])
    with torch.no_grad():
        expected = (network(inputs)[:, 0] - targets).square().mean()
    assert found.loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("head", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_a_regression_through_a_softmax_is_refused(head: nn.Module) -> None:
    with pytest.raises(DatasetError, match="ends in a softmax"):
        evaluate(nn.Sequential(*mlp(), head), [(torch.zeros(2, 6), torch.zeros(2, 3))])


def test_an_output_that_is_no_table_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"\(2,\), not \[batch, categories\]"):
        evaluate(nn.Flatten(0), [(torch.zeros(2, 1), torch.zeros(2))])
