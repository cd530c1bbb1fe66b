"""CKA as it is written: explicit Gram and centring matrices in float64, one evaluation for each prefix."""

import numpy as np

Array = np.ndarray


def centred_gram(features: Array, estimator: str) -> Array:
    """The Gram matrix of [samples, …], centred on both sides, or U-centred (Szekely and Rizzo)."""
    flat = features.astype(np.float64).reshape(len(features), -1)
    gram, n = flat @ flat.T, len(features)
    if estimator == "biased":
        centring = np.eye(n) - np.ones((n, n)) / n
        return centring @ gram @ centring
    np.fill_diagonal(gram, 0.0)
    rows = gram.sum(axis=1)
    gram = gram - (rows[:, None] + rows[None, :]) / (n - 2) + gram.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(gram, 0.0)
    return gram


def cka(x: Array, y: Array, estimator: str) -> float:
    """CKA of two feature arrays."""
    one, other = centred_gram(x, estimator), centred_gram(y, estimator)
    return float((one * other).sum() / np.sqrt((one * one).sum() * (other * other).sum()))


def cka_prefix(features: Array, order: Array, estimator: str) -> Array:
    """The paper's linear scan: add one neuron after the other and compare with the whole layer."""
    return np.array([cka(features[:, order[: k + 1]], features, estimator) for k in range(len(order))])
