"""The decision between categories, against scipy's normal densities."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from neusemslice.increments.discriminant import RIDGE, SHRINKAGE, Discriminant, find_directions


def clusters(categories: int, samples: int, features: int = 6, seed: int = 0):
    """Normal samples of categories that differ in mean and spread."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % categories
    spread = torch.randn(categories, features, features, generator=generator, dtype=torch.float64)
    noise = torch.randn(samples, features, generator=generator, dtype=torch.float64)
    means = 3 * torch.randn(categories, features, generator=generator, dtype=torch.float64)
    return means[labels] + (spread[labels] @ noise[:, :, None])[:, :, 0], labels


def fitted(directions: int, parts: int = 1) -> tuple[Discriminant, torch.Tensor, torch.Tensor]:
    features, labels = clusters(4, 400)
    first = labels < 2
    start = find_directions(features[first], [4, 2], directions)
    batches = [list(zip(features[own].chunk(parts), labels[own].chunk(parts), strict=True)) for own in (first, ~first)]
    return start.with_categories(batches[0], range(2)).with_categories(batches[1], range(2, 4)), features, labels


def test_scores_are_log_densities_of_shrunk_normals() -> None:
    discriminant, features, labels = fitted(5)
    z = discriminant.along(features).numpy()
    own = [z[labels.numpy() == category] for category in range(4)]
    covariances = [np.cov(part.T, ddof=0) for part in own]
    shared = np.mean(covariances, axis=0)
    for category in range(4):
        weight = (SHRINKAGE * 100 + 5) / (100 + 5)
        covariance = (1 - weight) * covariances[category] + weight * shared
        covariance += RIDGE * np.trace(shared) / 5 * np.eye(5)
        expected = multivariate_normal(own[category].mean(0), covariance).logpdf(z) + 2.5 * np.log(2 * np.pi)
        found = discriminant.scores(features)[:, category].numpy()
        np.testing.assert_allclose(found, expected, rtol=0.01, atol=0.05)  # what is kept is in half precision


def test_directions_have_unit_variance_and_do_not_go_together() -> None:
    features, labels = clusters(4, 400)
    start = find_directions(features[labels < 2], [4, 2], 6)
    z = start.along(features[labels < 2])
    torch.testing.assert_close(torch.cov(z.T, correction=0), torch.eye(6, dtype=torch.float64), rtol=0, atol=5e-3)


def test_features_that_do_not_vary_give_no_direction() -> None:
    features, _ = clusters(4, 400)
    features[:, 3:] = features[:, :1]
    assert find_directions(features, [4, 2], 6).directions.shape[1] == 3
    assert find_directions(torch.zeros(8, 2, dtype=torch.float64), [2], 2).directions.shape == (2, 1)


def test_how_the_samples_come_does_not_matter() -> None:
    one, features, _ = fitted(5)
    other, _, _ = fitted(5, parts=7)
    torch.testing.assert_close(one.scores(features), other.scores(features), rtol=1e-2, atol=1e-2)
    assert torch.equal(one.counts, other.counts)


@pytest.mark.parametrize("directions", [1, 3, 5])
def test_bytes_are_those_of_the_formula(directions: int) -> None:
    """Centre and directions of 6 features, a length each; of 4 categories mean, triangle (half) and count (8 bytes)."""
    discriminant, _, _ = fitted(directions)
    triangle = directions * (directions + 1) // 2
    assert discriminant.bytes_kept == 2 * (6 + 6 * directions + 4 * (directions + triangle)) + 4 * directions + 8 * 4


def test_more_directions_decide_better() -> None:
    shares = []
    for directions in (1, 6):
        discriminant, features, labels = fitted(directions)
        shares.append(float((discriminant.scores(features).argmax(1) == labels).double().mean()))
    assert shares[1] > max(shares[0], 0.95)
