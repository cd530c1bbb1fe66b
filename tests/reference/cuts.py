"""Completeness of DeepLIFT at any cut of a graph: what is alive between two nodes carries the whole change."""

from typing import Any

import torch
from torch import Tensor, fx

from neusemslice.contribution import deeplift
from neusemslice.tracing import SliceableModel


def completeness_error(model: SliceableModel, inputs: Tensor, targets: Tensor, cut: int) -> float:
    """|sum of multiplier * (value - baseline's value) over all values alive after node `cut` - change of the logit|.

    Relative to the largest logit, the largest over the samples. The values alive are made leaves of the gradient, so
    that what lies before the cut plays no part.
    """
    recorder = deeplift._Recorder(model)
    before = _Alive(recorder, cut)
    with torch.no_grad():
        reference = recorder.read(torch.zeros(1, *model.input_shape, dtype=model.dtype))
    reader = deeplift._RescaledReader(model, recorder.nonlinear)
    after = _Alive(reader, cut)
    with torch.enable_grad():
        reading = reader.read(inputs)
        own = reading.logits.gather(1, targets[:, None])[:, 0]
    names = list(after.values)
    multipliers = torch.autograd.grad(own.sum(), [after.values[name] for name in names])
    total = torch.zeros_like(own)
    for name, multiplier in zip(names, multipliers, strict=True):
        change = multiplier * (after.values[name].detach() - before.values[name])
        total = total + change.flatten(1).sum(1)
    expected = own - reference.logits[0, targets]
    return float(((total - expected).abs().max() / reading.logits.abs().max()).detach())


class _Alive:
    """Takes what is alive after a node out of an interpreter's environment, and puts leaves in its place."""

    def __init__(self, interpreter: fx.Interpreter, cut: int) -> None:
        self.values: dict[str, Tensor] = {}
        nodes = list(interpreter.module.graph.nodes)
        run_node = interpreter.run_node

        def run(node: fx.Node) -> Any:
            if node is nodes[cut + 1]:
                for alive in nodes[: cut + 1]:
                    if alive in interpreter.env and any(nodes.index(user) > cut for user in alive.users):
                        leaf = interpreter.env[alive].detach().requires_grad_()
                        self.values[alive.name] = interpreter.env[alive] = leaf
            return run_node(node)

        interpreter.run_node = run
