"""Linear CKA between a layer's neurons and the layer itself, for every prefix of the neurons at once.

The Gram matrix of a set of neurons is the sum of the neurons' own Gram matrices, and centring is linear. With F_i the
centred outputs of neuron i (samples x positions), K_k = sum_{i<=k} F_i F_i^T and N samples, both estimators of

    CKA(top-k, all) = H(K_k, K_n) / sqrt(H(K_k, K_k) H(K_n, K_n))

come from three running quantities: <K_k, K_n> and |K_k|^2, the diagonals, and the traces:

    biased    H(K, L) = <K, L>
    unbiased  H(K, L) = <K, L> - N/(N-2) <diag K, diag L> + tr K tr L / ((N-1)(N-2))      (Szekely and Rizzo 2014)

(the factors of HSIC cancel). |K_k|^2 grows block by block, so the cost is about 5 N^2 n P multiplications when there
are more columns than samples, and (n P)^2 N when there are fewer: exact, without a scan over k.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from neusemslice.config import Estimator
from neusemslice.errors import DatasetError

LEAST_SAMPLES: dict[str, int] = {"biased": 2, "unbiased": 4}

_CONSTANT = 1e-20
"""A layer is constant if its variance is below this share of its mean square: only rounding is left."""
_DEAD = 1e-12
"""A prefix says nothing if its HSIC with itself is below this share of its squared trace."""


def cka_prefix(
    features: Float[Tensor, "samples neurons"] | Float[Tensor, "samples neurons positions"],
    order: Int64[Tensor, " neurons"] | None = None,
    estimator: Estimator = "unbiased",
) -> Float64[Tensor, " neurons"]:
    """CKA of the first k neurons of `order` with all of them, for k = 1 … n, exact.

    A prefix of neurons that do not vary has coverage 0. A layer that does not vary on these samples has nothing to
    cover: every prefix has 1. The last value is 1. Values are not clipped, and the curve need not be monotone.

    Args:
        features: outputs of a layer's neurons on the samples of one category.
        order: the neurons, most contributing first; default: as they come.
        estimator: `unbiased` or `biased` HSIC.

    Raises:
        DatasetError: fewer samples than the estimator needs (4 or 2), or a value is not finite.
    """
    if order is None:
        order = torch.arange(features.shape[1], device=features.device)
    return prefix_curves(features, [order], estimator)[0]


def prefix_curves(
    features: Float[Tensor, "samples neurons"] | Float[Tensor, "samples neurons positions"],
    orders: Sequence[Int64[Tensor, " neurons"]],
    estimator: Estimator = "unbiased",
) -> Float64[Tensor, "orders neurons"]:
    """`cka_prefix` for several orders of the same features; what does not depend on the order is computed once."""
    columns = _centred(features, estimator)
    samples, neurons, _ = columns.shape
    squares = columns.square().sum(2)
    whole = columns.flatten(1) @ columns.flatten(1).T
    with_whole = ((whole @ columns.flatten(1)).view_as(columns) * columns).sum((0, 2))
    traces = squares.sum(0)
    if traces.sum() <= _CONSTANT * features.double().square().sum():
        return torch.ones(len(orders), neurons, dtype=torch.float64, device=columns.device)
    shared = _pair_products(columns) if columns[0].numel() <= 2 * len(orders) * samples else None
    curves = []
    for order in orders:
        ordered = order.to(columns.device)
        with_self = _norms_in_order(columns[:, ordered]) if shared is None else _norms_of_pairs(shared, ordered)
        cross = with_whole[ordered].cumsum(0)
        if estimator == "unbiased":
            diagonals, trace = squares[:, ordered].cumsum(1), traces[ordered].cumsum(0)
            by_diagonal, by_trace = samples / (samples - 2), 1 / ((samples - 1) * (samples - 2))
            with_self = with_self - by_diagonal * diagonals.square().sum(0) + by_trace * trace.square()
            cross = cross - by_diagonal * (diagonals.T @ diagonals[:, -1]) + by_trace * trace * trace[-1]
        curves.append(_ratio(cross, with_self, traces[ordered].cumsum(0)))
    return torch.stack(curves)


def _centred(features: Tensor, estimator: Estimator) -> Float64[Tensor, "samples neurons positions"]:
    """Features minus their mean over the samples; a missing axis of positions is added."""
    samples, least = features.shape[0], LEAST_SAMPLES[estimator]
    if samples < least:
        raise DatasetError(
            f"CKA ({estimator}) needs at least {least} samples, and there are {samples}.",
            hint="Add samples to the category, or use estimator='biased' (2 samples).",
        )
    columns = features.double()
    if not bool(torch.isfinite(columns).all()):
        raise DatasetError(
            "A layer's output is not finite (NaN or infinite).", hint="Check the weights and the input's scale."
        )
    columns = columns - columns.mean(0)
    return columns[..., None] if columns.ndim == 2 else columns


def _ratio(cross: Tensor, with_self: Tensor, trace: Tensor) -> Float64[Tensor, " neurons"]:
    """CKA from the HSICs; 0 where the prefix says nothing, 1 where it is everything."""
    alive = with_self > _DEAD * trace.square()
    if not bool(alive[-1]):
        return torch.ones_like(cross)
    curve = torch.where(alive, cross / (with_self.clamp_min(0) * with_self[-1]).sqrt(), torch.zeros_like(cross))
    curve[-1] = 1.0
    return curve


def _pair_products(columns: Float64[Tensor, "samples neurons positions"]) -> Float64[Tensor, "neurons neurons"]:
    """<F_i F_i^T, F_j F_j^T> for every pair, a block of rows at a time."""
    samples, neurons, positions = columns.shape
    flat = columns.flatten(1)
    rows = []
    for block in columns.split(max(1, samples // positions), dim=1):
        products = (block.flatten(1).T @ flat).square()
        rows.append(products.view(block.shape[1], positions, neurons, positions).sum((1, 3)))
    return torch.cat(rows)


def _norms_of_pairs(pairs: Float64[Tensor, "neurons neurons"], order: Tensor) -> Float64[Tensor, " neurons"]:
    """|K_k|^2 of every prefix from the products of all pairs."""
    ordered = pairs[order][:, order]
    return (2 * ordered.tril(-1).sum(1) + ordered.diagonal()).cumsum(0)


def _norms_in_order(columns: Float64[Tensor, "samples neurons positions"]) -> Float64[Tensor, " neurons"]:
    """|K_k|^2 of every prefix of neurons that are already in order, with the N x N matrix K growing block by block."""
    samples, _, positions = columns.shape
    grown = columns.new_zeros(samples, samples)
    growths = []
    if 2 * positions > samples:  # one neuron's Gram matrix is smaller than the products of its own columns
        for neuron in columns.unbind(1):
            gram = neuron @ neuron.T
            growths.append((2 * (grown * gram).sum() + gram.square().sum()).reshape(1))
            grown += gram
        return torch.cat(growths).cumsum(0)
    for block in columns.split(max(1, samples // (2 * positions)), dim=1):
        flat = block.flatten(1)
        before = ((grown @ flat) * flat).sum(0).view(-1, positions).sum(1)
        inside = _pair_products(block)
        growths.append(2 * before + 2 * inside.tril(-1).sum(1) + inside.diagonal())
        grown += flat @ flat.T
    return torch.cat(growths).cumsum(0)
