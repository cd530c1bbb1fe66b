"""FGSM and PGD spelled out: one sample, float64, gradients by central differences, bounds value by value."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_STEP = 1e-6


def fgsm(loss: Callable[[Array], float], x: Array, epsilon: float, low: Array, high: Array, norm: str) -> Array:
    """`low` and `high` are given for each value, in the units of x; epsilon in shares of what lies between."""
    return _moved(loss, x, x, epsilon, epsilon, low, high, norm)


def pgd(
    loss: Callable[[Array], float],
    x: Array,
    start: Array,
    epsilon: float,
    step: float,
    steps: int,
    low: Array,
    high: Array,
    norm: str,
) -> Array:
    """From `start`, in steps of `step` times epsilon."""
    at = _bounded(x, start, epsilon, low, high, norm)
    for _ in range(steps):
        at = _moved(loss, x, at, step * epsilon, epsilon, low, high, norm)
    return at


def _moved(
    loss: Callable[[Array], float], x: Array, at: Array, by: float, epsilon: float, low: Array, high: Array, norm: str
) -> Array:
    shares = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        above, below = at.copy(), at.copy()
        above[place] += _STEP
        below[place] -= _STEP
        shares[place] = (loss(above) - loss(below)) / (2 * _STEP) * (high[place] - low[place])
    if norm == "inf":
        direction = np.sign(np.where(np.abs(shares) < 1e-9, 0, shares))
    else:
        direction = shares / np.linalg.norm(shares)
    return _bounded(x, at + by * direction * (high - low), epsilon, low, high, norm)


def _bounded(x: Array, at: Array, epsilon: float, low: Array, high: Array, norm: str) -> Array:
    unit = np.where(high > low, high - low, 1)
    change = (at - x) / unit
    if norm == "inf":
        change = np.array([min(max(value, -epsilon), epsilon) for value in change.ravel()]).reshape(x.shape)
    elif np.linalg.norm(change) > epsilon:
        change = change * epsilon / np.linalg.norm(change)
    moved = np.empty_like(x)
    for place in np.ndindex(x.shape):
        value = x[place] + change[place] * (high[place] - low[place])
        moved[place] = min(max(value, min(low[place], x[place])), max(high[place], x[place]))
    return moved
