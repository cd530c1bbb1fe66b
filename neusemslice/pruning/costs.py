"""What a network with zeros would cost an engine that skips them."""

import torch
from torch import Tensor, fx, nn

from neusemslice.graph_layers import QueryKeyValue
from neusemslice.modes import evaluating
from neusemslice.profiling import count_flops
from neusemslice.roles import CONVOLUTIONS


def flops_without_zeros(network: fx.GraphModule, input_shape: tuple[int, ...]) -> int:
    """`count_flops`, less the products with weights that are zero: two operations at each position of the output."""
    skipped = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal skipped
        weight = layer.get_parameter("weight")
        positions = output.numel() // len(weight)
        skipped += 2 * positions * (weight.numel() - int(weight.count_nonzero()))

    parameter = next(network.parameters())
    counted = (*CONVOLUTIONS, nn.Linear, QueryKeyValue)
    handles = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, counted)]
    try:
        with evaluating(network), torch.no_grad():
            network(torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return count_flops(network, input_shape) - skipped
