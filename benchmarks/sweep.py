"""Compression against accuracy of all strategies on one's own model and data, through the HTTP API.

python -m benchmarks.sweep ARCHITECTURE.json WEIGHTS.safetensors DATA.npz --preprocess '{"scale": 0.00392157}'
"""

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from neusemslice_cli.client import Client
from neusemslice_cli.demo import served

THETAS = [0.6, 0.7, 0.8, 0.85, 0.88, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995]
FRACTIONS = [0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
TARGETS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def main() -> None:
    """Upload, run one slice job for each strategy and metric, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architecture", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--preprocess", type=json.loads, default={})
    parser.add_argument("--metrics", nargs="+", default=["taylor", "deeplift"])
    parser.add_argument("--limit-per-category", type=int)
    parser.add_argument("--samples-per-category", type=int, default=256)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(Path(folder) / "service") as client:
        architecture = json.loads(arguments.architecture.read_text())
        model = client.upload_model(arguments.weights, architecture, name="model")
        data = client.upload_dataset(arguments.data, {"preprocess": arguments.preprocess}, name="data")
        job = {"model_id": model["id"], "dataset_id": data["id"]}
        if arguments.limit_per_category:
            job["limit_per_category"] = arguments.limit_per_category
        for metric in arguments.metrics:
            compare(client, job, metric, arguments.samples_per_category)


def compare(client: Client, job: dict[str, Any], metric: str, samples: int) -> None:
    """One table: what each strategy reaches at the same compression, read off its measured points."""
    print(f"\n## {metric}")
    curves = {}
    for strategy in ("semantic", "categorywise", "global", "random"):
        cuts = THETAS if strategy == "semantic" else FRACTIONS
        slicing = {"strategy": strategy, "metric": metric, "samples_per_category": samples}
        started = time.monotonic()
        ended = client.wait(client.submit({"kind": "slice", **job, "slicing": slicing, "sweep": cuts}), timeout_s=3600)
        if ended["status"] != "succeeded":
            raise SystemExit(f"{strategy}: {ended['error']}")
        result = ended["result"]
        curves[strategy] = [(point["compression_rate"], point["accuracy"]) for point in result["sweep"]]
        print(f"\n{strategy}, {time.monotonic() - started:.0f} s; the network itself {result['accuracy_before']:.2%}")
        name = "theta" if strategy == "semantic" else "fraction kept"
        print(f"| {name} | " + " | ".join(f"{cut:g}" for cut in cuts) + " |")
        print("|" + "---|" * (len(cuts) + 1))
        print("| compression | " + " | ".join(f"{rate:.1%}" for rate, _ in curves[strategy]) + " |")
        print("| accuracy | " + " | ".join(f"{accuracy:.2%}" for _, accuracy in curves[strategy]) + " |")
    print(f"\naccuracy at equal compression ({metric}, interpolated between the measured points)\n")
    print("| strategy | " + " | ".join(f"{target:.0%}" for target in TARGETS) + " |")
    print("|" + "---|" * (len(TARGETS) + 1))
    for strategy, points in curves.items():
        print(f"| {strategy} | " + " | ".join(_at(points, target) for target in TARGETS) + " |")


def _at(points: list[tuple[float, float]], target: float) -> str:
    ordered = sorted(points)
    for (low, first), (high, second) in pairwise(ordered):
        if low <= target <= high:
            share = 0.0 if high == low else (target - low) / (high - low)
            return f"{first + share * (second - first):.2%}"
    return "-"


if __name__ == "__main__":
    main()
