"""What a network costs: parameters, operations, time."""

import statistics
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from neusemslice.modes import evaluating

_WARM_UP = 3


def count_parameters(network: nn.Module) -> int:
    """Trainable or not, biases and norms included; running statistics are no parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_flops(network: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Floating-point operations of the matrix products of one forward pass on one sample (a multiply-add is two)."""
    counter = FlopCounterMode(display=False)
    with evaluating(network), torch.no_grad(), counter:
        network(_samples(network, input_shape, 1))
    return int(counter.get_total_flops())


def measure_latency(network: nn.Module, input_shape: tuple[int, ...], *, batch_size: int, repeats: int = 20) -> float:
    """Median time in seconds of one forward pass on `batch_size` samples, after a warm-up."""
    inputs = _samples(network, input_shape, batch_size)
    times = []
    with evaluating(network), torch.inference_mode():
        for _ in range(_WARM_UP + repeats):
            _synchronize(inputs.device)
            started = time.perf_counter()
            network(inputs)
            _synchronize(inputs.device)
            times.append(time.perf_counter() - started)
    return statistics.median(times[_WARM_UP:])


def _samples(network: nn.Module, input_shape: tuple[int, ...], batch_size: int) -> torch.Tensor:
    parameter = next(network.parameters())
    samples = torch.randn(batch_size, *input_shape, generator=torch.Generator().manual_seed(0))
    return samples.to(parameter.device, parameter.dtype)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
