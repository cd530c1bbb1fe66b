"""Batch norms whose statistics are those of what they read now."""

import torch
from torch import Tensor

from neusemslice.reconstruction.adjusting import Place, Spread
from neusemslice.reconstruction.report import LayerFit


def measure_again(place: Place) -> LayerFit:
    """Set the running mean and variance to those of the calibration samples."""
    layer = place.layer
    before = _error(place)
    mean, variance = layer.running_mean, layer.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    features = place.reads.movedim(1, 0).flatten(1)
    layer.running_mean = torch.stack([feature.double().mean() for feature in features]).to(mean)
    layer.running_var = torch.stack([feature.double().var() for feature in features]).to(variance)
    return LayerFit(before, _error(place))


def _error(place: Place) -> float:
    """How far the norm's output is from what it should be, relative to how much that varies."""
    spread = Spread(len(place.kept))
    for reads, wanted in zip(place.reads.split(64), place.wanted.split(64), strict=True):
        target = wanted.index_select(1, place.kept).double()
        spread.add(target.movedim(1, -1), (target - place.layer(reads).double()).movedim(1, -1))
    return spread.of(spread.missing)
