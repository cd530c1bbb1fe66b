"""Linear CKA between a layer's neurons and the layer itself, for every prefix of the neurons at once.

The Gram matrix of a set of neurons is the sum of the neurons' own Gram matrices, and centring is linear. With F_i the
centred outputs of neuron i (samples x positions), K_k = sum_{i<=k} F_i F_i^T and N samples, both estimators of

    CKA(top-k, all) = H(K_k, K_n) / sqrt(H(K_k, K_k) H(K_n, K_n))

come from three running quantities: <K_k, K_n> and |K_k|^2, the diagonals, and the traces:

    biased    H(K, L) = <K, L>
    unbiased  H(K, L) = <K, L> - N/(N-2) <diag K, diag L> + tr K tr L / ((N-1)(N-2))      (Szekely and Rizzo 2014)

(the factors of HSIC cancel). |K_k|^2 grows block by block, so the cost is about 5 N^2 n P multiplications when there
are more columns than samples, and (n P)^2 N when there are fewer: exact, without a scan over k. The outputs are read
block by block too: beside them no more is held than `working_bytes` says.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from neusemslice.config import Estimator
from neusemslice.errors import DatasetError

Products = tuple[Float64[Tensor, " neurons"], Float64[Tensor, " neurons"]]
"""<K_k, K_n> and |K_k|^2 of every prefix."""

LEAST_SAMPLES: dict[str, int] = {"biased": 2, "unbiased": 4}

_CONSTANT = 1e-20
"""A layer is constant if its variance is below this share of its mean square: only rounding is left."""
_DEAD = 1e-12
"""A prefix says nothing if its HSIC with itself is below this share of its squared trace."""
_FEW_COLUMNS = 4
"""Columns for each sample up to which the products of all pairs of columns are the cheaper way."""
_BLOCK_COLUMNS = 512
"""Columns that are taken at once at least."""


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
    layer = _Layer(features, estimator)
    samples, neurons = layer.squares.shape
    traces = layer.squares.sum(0)
    if traces.sum() <= _CONSTANT * layer.square_sum:
        return torch.ones(len(orders), neurons, dtype=torch.float64, device=features.device)
    compare = _by_pairs if layer.columns <= _FEW_COLUMNS * samples else _by_blocks
    curves = []
    for order, products in compare(layer, [order.to(features.device) for order in orders]):
        cross, with_self = products
        trace = traces[order].cumsum(0)
        if estimator == "unbiased":
            by_diagonal, by_trace = samples / (samples - 2), 1 / ((samples - 1) * (samples - 2))
            diagonal_cross, diagonal_self = _diagonals(layer.squares, order)
            cross = cross - by_diagonal * diagonal_cross + by_trace * trace * trace[-1]
            with_self = with_self - by_diagonal * diagonal_self + by_trace * trace.square()
        curves.append(_ratio(cross, with_self, trace))
    return torch.stack(curves)


def centred_gram(
    features: Float[Tensor, "samples neurons positions"], estimator: Estimator = "unbiased"
) -> Float64[Tensor, "samples samples"]:
    """The Gram matrix of a layer, centred so that the inner product of two layers' matrices is their HSIC.

    Zero for a layer that does not vary.

    Args:
        features: outputs of a layer's neurons on some samples.
        estimator: centred on both sides (`biased`), or U-centred (`unbiased`, Szekely and Rizzo 2014).

    Raises:
        DatasetError: fewer samples than the estimator needs (4 or 2), or a value is not finite.
    """
    layer = _Layer(features, estimator)
    gram = layer.gram()
    samples, trace = len(gram), float(gram.trace())
    if trace <= _CONSTANT * layer.square_sum:
        return torch.zeros_like(gram)
    if estimator == "unbiased":
        gram.fill_diagonal_(0.0)
        rows = gram.sum(1)
        gram += rows.sum() / ((samples - 1) * (samples - 2)) - (rows[:, None] + rows) / (samples - 2)
        gram.fill_diagonal_(0.0)
    return gram if float(gram.square().sum()) > _DEAD * trace**2 else torch.zeros_like(gram)


def working_bytes(samples: int, neurons: int, positions: int) -> int:
    """Most memory that `prefix_curves` takes for two orders, beside the features themselves."""
    columns = neurons * positions
    if columns <= _FEW_COLUMNS * samples:
        numbers = 2 * (samples + max(samples, positions)) * columns + 4 * neurons**2
    else:
        numbers = 5 * samples**2 + 4 * samples * max(_BLOCK_COLUMNS, samples // 2, positions)
    diagonals = 2 * samples * neurons + 3 * samples * min(neurons, _BLOCK_COLUMNS)
    return 8 * (numbers + diagonals + 16 * neurons)


class _Layer:
    """The features minus their mean over the samples, in float64 and a block of neurons at a time."""

    def __init__(self, features: Tensor, estimator: Estimator) -> None:
        samples, least = features.shape[0], LEAST_SAMPLES[estimator]
        if samples < least:
            raise DatasetError(
                f"CKA ({estimator}) needs at least {least} samples, and there are {samples}.",
                hint="Add samples to the category, or use estimator='biased' (2 samples).",
            )
        self._features = features[..., None] if features.ndim == 2 else features
        self.everything = torch.arange(features.shape[1], device=features.device)
        self.columns = self._features[0].numel()
        self.squares = torch.empty(features.shape[:2], dtype=torch.float64, device=features.device)
        """Of each sample and neuron: the squared length of its centred outputs, which is the Gram matrix' diagonal."""
        self.square_sum = 0.0
        """Sum of the squares of the features themselves."""
        for block in self._split(self.everything):
            values = self._features[:, block].double()
            if not bool(torch.isfinite(values).all()):
                raise DatasetError(
                    "A layer's output is not finite (NaN or infinite).", hint="Check the weights and the input's scale."
                )
            self.square_sum += float(values.square().sum())
            self.squares[:, block] = (values - values.mean(0)).square().sum(2)

    def take(self, neurons: Int64[Tensor, " block"]) -> Float64[Tensor, "samples block positions"]:
        """The centred outputs of some neurons."""
        values = self._features[:, neurons].double()
        return values - values.mean(0)

    def blocks(self, order: Int64[Tensor, " neurons"]) -> Iterator[Float64[Tensor, "samples block positions"]]:
        """The centred outputs of the neurons in that order."""
        return map(self.take, self._split(order))

    def gram(self) -> Float64[Tensor, "samples samples"]:
        """The inner products of the samples' centred outputs."""
        gram = torch.zeros(len(self.squares), len(self.squares), dtype=torch.float64, device=self.squares.device)
        for block in self.blocks(self.everything):
            gram.addmm_(block.flatten(1), block.flatten(1).T)
        return gram

    def _split(self, order: Tensor) -> tuple[Tensor, ...]:
        samples, _, positions = self._features.shape
        return torch.split(order, max(1, max(_BLOCK_COLUMNS, samples // 2) // positions))


def _by_blocks(layer: _Layer, orders: Sequence[Tensor]) -> Iterator[tuple[Tensor, Products]]:
    """Each order with its products, by N x N matrices."""
    whole = layer.gram()
    with_whole = torch.cat([_with_gram(whole, block) for block in layer.blocks(layer.everything)])
    for order in orders:
        yield order, (with_whole[order].cumsum(0), _norms_in_order(layer, order))


def _by_pairs(layer: _Layer, orders: Sequence[Tensor]) -> Iterator[tuple[Tensor, Products]]:
    """Each order with its products, from those of all pairs of neurons."""
    pairs = _pair_products(layer.take(layer.everything))
    with_whole = pairs.sum(1)
    for order in orders:
        ordered = pairs[order][:, order]
        norms = (2 * ordered.tril(-1).sum(1) + ordered.diagonal()).cumsum(0)
        yield order, (with_whole[order].cumsum(0), norms)


def _with_gram(
    gram: Float64[Tensor, "samples samples"], columns: Float64[Tensor, "samples neurons positions"]
) -> Float64[Tensor, " neurons"]:
    """<F_i F_i^T, gram> of every neuron."""
    return ((gram @ columns.flatten(1)).view_as(columns) * columns).sum((0, 2))


def _pair_products(columns: Float64[Tensor, "samples neurons positions"]) -> Float64[Tensor, "neurons neurons"]:
    """<F_i F_i^T, F_j F_j^T> for every pair, a block of rows at a time."""
    samples, neurons, positions = columns.shape
    flat = columns.flatten(1)
    rows = []
    for block in columns.split(max(1, samples // positions), dim=1):
        products = (block.flatten(1).T @ flat).square_()
        rows.append(products.view(block.shape[1], positions, neurons, positions).sum((1, 3)))
    return torch.cat(rows)


def _norms_in_order(layer: _Layer, order: Int64[Tensor, " neurons"]) -> Float64[Tensor, " neurons"]:
    """|K_k|^2 of every prefix, with the N x N matrix K growing block by block."""
    samples, positions = len(layer.squares), layer.columns // len(order)
    grown = torch.zeros(samples, samples, dtype=torch.float64, device=layer.squares.device)
    together = samples // (2 * positions)  # at 0 one neuron's Gram matrix is smaller than its columns' products
    growths = []
    for block in layer.blocks(order):
        for columns in block.split(max(1, together), dim=1):
            flat = columns.flatten(1)
            if together:
                inside = _pair_products(columns)
                growth = 2 * (_with_gram(grown, columns) + inside.tril(-1).sum(1)) + inside.diagonal()
                grown.addmm_(flat, flat.T)
            else:
                gram = flat @ flat.T
                growth = (2 * (grown * gram).sum() + gram.square().sum()).reshape(1)
                grown += gram
            growths.append(growth)
    return torch.cat(growths).cumsum(0)


def _diagonals(
    squares: Float64[Tensor, "samples neurons"], order: Int64[Tensor, " neurons"]
) -> tuple[Float64[Tensor, " neurons"], Float64[Tensor, " neurons"]]:
    """<diag K_k, diag K_n> and |diag K_k|^2 of every prefix."""
    whole = squares.sum(1)
    reached = torch.zeros_like(whole)
    cross, norms = [], []
    for block in order.split(_BLOCK_COLUMNS):
        diagonals = reached[:, None] + squares[:, block].cumsum(1)
        cross.append(whole @ diagonals)
        norms.append(diagonals.square().sum(0))
        reached = diagonals[:, -1]
    return torch.cat(cross), torch.cat(norms)


def _ratio(cross: Tensor, with_self: Tensor, trace: Tensor) -> Float64[Tensor, " neurons"]:
    """CKA from the HSICs; 0 where the prefix says nothing, 1 where it is everything."""
    alive = with_self > _DEAD * trace.square()
    if not bool(alive[-1]):
        return torch.ones_like(cross)
    curve = torch.where(alive, cross / (with_self.clamp_min(0) * with_self[-1]).sqrt(), torch.zeros_like(cross))
    curve[-1] = 1.0
    return curve
