"""Costs of networks small enough to count by hand."""

import pytest
import torch
from torch import nn

from neusemslice.profiling import count_flops, count_parameters, measure_latency
from tests.neusemslice.networks import mlp, vgg_like


def test_parameters_include_biases_and_norms() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5))
    assert count_parameters(network) == (2 * 3 * 9 + 3) + (3 + 3) + (12 * 5 + 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_multiply_add_is_two_operations(dtype: torch.dtype) -> None:
    assert count_flops(mlp().to(dtype), (6,)) == 2 * (6 * 9 + 9 * 7 + 7 * 3)
    first, second = 12 * 12 * 6 * 2 * 9, 4 * 4 * 5 * 6 * 9
    assert count_flops(vgg_like().to(dtype), (2, 12, 12)) == 2 * (first + second + 20 * 8 + 8 * 3)


def test_measuring_leaves_the_mode_as_it_was() -> None:
    network = vgg_like().train()
    network[1].eval()
    running_mean = network[8].running_mean.clone()
    assert measure_latency(network, (2, 12, 12), batch_size=2, repeats=3) > 0
    assert network.training
    assert not network[1].training
    assert torch.equal(network[8].running_mean, running_mean)
