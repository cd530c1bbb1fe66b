"""The closed form of the linear scan against the scan itself, and against its floor.

    python -m benchmarks.cka

The scan is evaluated at evenly spread prefixes and its time scaled to all of them; the closed form is timed in full.
"""

import statistics
import time
from collections.abc import Callable

import torch

from neusemslice.similarity import cka_prefix

NEURONS, SAMPLES, SCANNED, REPEATS = 4096, 500, 64, 5
TOLERANCE = 1e-6


def centred_gram(features: torch.Tensor, estimator: str) -> torch.Tensor:
    """As the scan needs it: the Gram matrix of some neurons, centred."""
    gram = features @ features.T
    samples = len(gram)
    if estimator == "biased":
        return gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    gram.fill_diagonal_(0.0)
    rows = gram.sum(1) / (samples - 2)
    gram = gram - rows[:, None] - rows[None, :] + rows.sum() / (samples - 1)
    return gram.fill_diagonal_(0.0)


def scan(features: torch.Tensor, prefixes: list[int], estimator: str) -> torch.Tensor:
    """One CKA after the other, the layer's own Gram matrix computed once."""
    whole = centred_gram(features, estimator)
    norm = whole.norm()
    values = []
    for k in prefixes:
        part = centred_gram(features[:, :k], estimator)
        values.append((part * whole).sum() / (part.norm() * norm))
    return torch.stack(values)


def seconds(action: Callable[[], object], repeats: int) -> float:
    """Median time."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Print the table; fails if closed form and scan disagree."""
    features = torch.randn(SAMPLES, NEURONS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prefixes = torch.linspace(1, NEURONS, SCANNED).round().int().tolist()
    print(f"n = {NEURONS} neurons, N = {SAMPLES} samples, float64; scan at {SCANNED} prefixes, scaled to {NEURONS}\n")
    print("| threads | estimator | closed form | scan | ratio | X^T X | N^2 n product | largest difference |")
    print("|---|---|---|---|---|---|---|---|")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        gram = seconds(lambda: features.T @ features, REPEATS)
        small = seconds(lambda: features @ features.T, REPEATS)
        for estimator in ("unbiased", "biased"):
            closed = seconds(lambda e=estimator: cka_prefix(features, None, e), REPEATS)
            scanned = seconds(lambda e=estimator: scan(features, prefixes, e), 1) * NEURONS / SCANNED
            found = cka_prefix(features, None, estimator)[[k - 1 for k in prefixes]]
            difference = float((found - scan(features, prefixes, estimator)).abs().max())
            print(
                f"| {threads} | {estimator} | {closed:.3f} s | {scanned:.1f} s | {scanned / closed:.0f}x "
                f"| {closed / gram:.2f}x of {gram:.3f} s | {closed / small:.1f}x of {small:.3f} s | {difference:.0e} |"
            )
            if difference > TOLERANCE:
                raise SystemExit(f"closed form and scan differ by {difference}")


if __name__ == "__main__":
    main()
