"""Cutting under a budget: the largest network whose checkpoint is small enough, or that is fast enough."""

from functools import cache

import torch
from torch import nn

from neusemslice.checkpoint import checkpoint_bytes
from neusemslice.config import Branches, SlicingConfig
from neusemslice.errors import TargetError
from neusemslice.profiling import measure_latency
from neusemslice.restructuring import restructure, shapes_after
from neusemslice.roles import CONVOLUTIONS
from neusemslice.steps import TOLERANCE, Steps
from neusemslice.tracing import SliceableModel

REPORT_BYTES = 2048
REPORT_BYTES_PER_LAYER = 256
"""Room in the file for reports of what was done to the network, and to each of its layers."""
ROUNDS = 3
"""A latency is the least of so many medians: other work on the machine only ever makes a round slower."""
MAX_PROBES = 16
"""Most networks that are made and timed for one latency target."""
_FIERCER = 0.02
"""Share of the parameters removed besides when a cut that was fast enough is not when it is measured again; doubled
each time."""


def check_budget(model: SliceableModel, config: SlicingConfig, branches: Branches) -> None:
    """What can be known before the analysis: no cut leaves less than one neuron in each layer.

    Raises:
        TargetError: even a network with one neuron a layer is above the budget.
    """
    if config.resolved_cut is not None or (config.target_size_bytes is None and config.target_latency_ms is None):
        return
    least = {layer.name: torch.arange(layer.neurons) == 0 for layer in model.sliceable_layers}
    if config.target_size_bytes is not None:
        size = stored_bytes(shapes_after(model, least, branches), model.input_shape)
        if size > config.target_size_bytes:
            raise TargetError(
                f"With one neuron in each layer the checkpoint has {size:,} bytes, and "
                f"target_size_bytes={config.target_size_bytes:,}.",
                hint=f"Allow at least that; whole, the network has {_whole_bytes(model):,}.",
            )
    if config.target_latency_ms is not None:
        smallest = restructure(model, least, branches=branches).model
        latency = _latency_ms(smallest, model, config.latency_batch_size)
        if latency > config.target_latency_ms:
            whole = _latency_ms(model.graph_module, model, config.latency_batch_size)
            raise TargetError(
                f"With one neuron in each layer the network takes {latency:.3g} ms on {model.device} for a batch of "
                f"{config.latency_batch_size}, and target_latency_ms={config.target_latency_ms:g}.",
                hint=f"Allow more than that; whole, the network takes {whole:.3g} ms.",
            )


def stored_bytes(network: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Size of the network's checkpoint with room for reports, and for biases that a reconstruction may add."""
    assert isinstance(network, torch.fx.GraphModule)
    layers = [layer for layer in network.modules() if next(layer.parameters(recurse=False), None) is not None]
    biases = sum(
        len(layer.get_parameter("weight")) * layer.get_parameter("weight").element_size()
        for layer in layers
        if isinstance(layer, (*CONVOLUTIONS, nn.Linear)) and layer.bias is None
    )
    reports = REPORT_BYTES + REPORT_BYTES_PER_LAYER * len(layers)
    return checkpoint_bytes(network, input_shape) + biases + reports


def meet_size(steps: Steps, budget: int) -> int:
    """The step that removes least among those whose checkpoint has at most `budget` bytes.

    Raises:
        TargetError: the step that removes most leaves more.
    """

    @cache
    def size(place: int) -> int:
        shapes = shapes_after(steps.model, steps.at(place).merged(), steps.branches)
        return stored_bytes(shapes, steps.model.input_shape)

    if size(0) > budget:
        raise TargetError(
            f"Even the fiercest cut leaves too much: {steps.describe(0)} and leaves a checkpoint of {size(0):,} bytes, "
            f"where {budget:,} are asked for.",
            hint="Allow more bytes, or slice by another strategy or metric.",
        )
    fits, above = 0, len(steps.cuts)
    while above - fits > 1:
        middle = (fits + above) // 2
        if size(middle) <= budget:
            fits = middle
        else:
            above = middle
    return fits


def meet_latency(steps: Steps, budget_ms: float, batch_size: int) -> int:
    """A step that has been measured to be within the budget twice, and that removes little more than it has to.

    A bisection of the compression, of at most `MAX_PROBES` networks that are made and timed on the model's device.
    Latency need not fall steadily with compression, so a larger network within the budget may exist.

    Raises:
        TargetError: no step within the budget was found; says what the nearest ones take.
    """
    measured: dict[int, float] = {}

    def holds(place: int) -> bool:
        smaller = restructure(steps.model, steps.at(place).merged(), branches=steps.branches).model
        measured[place] = _latency_ms(smaller, steps.model, batch_size)
        return measured[place] <= budget_ms

    def refuse(place: int) -> TargetError:
        return TargetError(
            f"No cut is fast enough for certain: {steps.describe(place)} and takes {measured[place]:.3g} ms on "
            f"{steps.model.device} for a batch of {batch_size}, where {budget_ms:g} ms are asked for.",
            hint="Allow more time, or slice by another strategy or metric.",
        )

    fast, slow = 0, len(steps.cuts) - 1
    if holds(slow) and holds(slow):
        return slow
    if not holds(fast):
        raise refuse(fast)
    while slow - fast > 1 and len(measured) < MAX_PROBES // 2:
        removes_more, removes_less = steps.compression(fast), steps.compression(slow)
        if removes_more - removes_less <= TOLERANCE:
            break
        middle = min(max(steps.first_at_most((removes_less + removes_more) / 2), fast + 1), slow - 1)
        if holds(middle):
            fast = middle
        else:
            slow = middle
    tried = fast
    for attempt in range(MAX_PROBES // 4):
        tried = fast
        if holds(fast) and holds(fast):
            return fast
        if fast == 0:
            break
        fast = min(steps.first_at_most(steps.compression(fast) + _FIERCER * 2**attempt), fast - 1)
    raise refuse(tried)


def _latency_ms(network: nn.Module, model: SliceableModel, batch_size: int) -> float:
    """Of one forward pass, where other work on the machine disturbs it least."""
    rounds = [measure_latency(network, model.input_shape, batch_size=batch_size) for _ in range(ROUNDS)]
    return 1000 * min(rounds)


def _whole_bytes(model: SliceableModel) -> int:
    return stored_bytes(model.graph_module, model.input_shape)
