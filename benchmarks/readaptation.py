"""One's own network repaired against attacks by every method, under the same epochs (the paper's table 6).

    python -m benchmarks.readaptation ARCHITECTURE.json WEIGHTS.safetensors DATA --preprocess '{"scale": 0.00392157}'

The strength of the attack is searched for: the one that leaves the network `--accuracy` of its samples. Each method is
cut to a training parameter ratio (TPR) of `--ratios`, from one analysis. RA is the accuracy on the attacked samples
trained on, RAA that on as many others, attacked afresh. All figures are means over `--seeds` draws of samples.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import torch

from benchmarks.own_files import opened, parser_of
from neusemslice import AttackConfig, ModelSlice, ReadaptConfig, SliceableModel, ValidRange, evaluate, readapt, trace
from neusemslice.batches import Batches
from neusemslice.config import SlicingConfig
from neusemslice.neuron_parameters import parameter_share
from neusemslice.readaptation import attack, trainable_parameters
from neusemslice.slicing import slice_many
from neusemslice.training import Subset, as_samples, batches_of
from neusemslice.training_config import TrainingConfig

STRATEGIES = ("semantic", "categorywise", "global", "deeparc")
METHODS = ("full", "deeparc", "global", "categorywise", "semantic", "semantic+deeparc")
PAPER_RATIOS = {"global": 0.3398, "categorywise": 0.3757, "semantic": 0.2674, "semantic+deeparc": 0.2417}
SEARCH_STEPS = 8
CUT_STEPS = 25


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--value-range", type=json.loads, default=[0, 255])
    parser.add_argument("--attack", type=json.loads, default={"method": "fgsm"})
    parser.add_argument("--accuracy", type=float, default=0.1853, help="Of the network under attack.")
    parser.add_argument("--training", type=json.loads, default={})
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--test-per-category", type=int, help="For the clean accuracy. Default: all.")
    parser.add_argument("--per-category", type=int, help="Analysed samples of each category. Default: all.")
    parser.add_argument("--ratios", type=json.loads, default=PAPER_RATIOS)
    parser.add_argument("--deeparc-threshold", type=float, default=0.7)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    with opened(given) as (network, shape, dataset):
        model = trace(network, torch.zeros(1, *shape))
        unit = ValidRange.of_stored(
            tuple(map(float, given.value_range)), dataset.facts.preprocess, model.input_shape[0]
        )
        train = dataset.batches("train", 256)
        test = list(dataset.batches("test", 256, limit_per_category=given.test_per_category))
        chosen = strength(model, train, AttackConfig.from_dict(given.attack), unit, given.samples, given.accuracy)
        analysed = dataset.batches("train", 256, limit_per_category=given.per_category)
        slices = choose_slices(model, analysed, PAPER_RATIOS | given.ratios, given.deeparc_threshold)
        print(f"{chosen}\n{TrainingConfig(**given.training)}\n")
        print("| method | TPR | under attack | RA | RAA | clean before | after | epochs to 100 % | training |")
        print("|---|---|---|---|---|---|---|---|---|")
        for method in given.methods:
            config = ReadaptConfig(
                method=method, attack=chosen, samples=given.samples, training=TrainingConfig(**given.training)
            )
            print(row(model, train, test, config, slices[method], unit, given.seeds), flush=True)


def strength(
    model: SliceableModel, data: Batches, config: AttackConfig, unit: ValidRange, samples: int, accuracy: float
) -> AttackConfig:
    """The attack whose strength leaves the network about this accuracy."""
    known = as_samples(data, model)
    drawn = Subset(known, torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[:samples])
    low, high = 0.0, 0.5
    for _ in range(SEARCH_STEPS):
        tried = replace(config, epsilons=((low + high) / 2,))
        attacked = attack(model.graph_module, drawn, tried, unit, seed=0)
        if evaluate(model, batches_of(attacked, 256)).accuracy > accuracy:
            low = tried.epsilons[0]
        else:
            high = tried.epsilons[0]
    return replace(config, epsilons=((low + high) / 2,))


def choose_slices(
    model: SliceableModel, data: Batches, ratios: dict[str, float], threshold: float
) -> dict[str, list[ModelSlice]]:
    """The slices of each method, at the largest cut whose TPR is not above the method's."""
    found = dict(zip(STRATEGIES, slice_many(model, data, [SlicingConfig(strategy=s) for s in STRATEGIES]), strict=True))
    layers = found["deeparc"].at(threshold)
    chosen = {name: [cut_to(model, found[name], [], ratios[name])] for name in ("semantic", "categorywise", "global")}
    both = [cut_to(model, found["semantic"], [layers], ratios["semantic+deeparc"]), layers]
    return chosen | {"full": [], "deeparc": [layers], "semantic+deeparc": both}


def cut_to(model: SliceableModel, slice_: ModelSlice, others: Sequence[ModelSlice], ratio: float) -> ModelSlice:
    low, high = 0.01, 1.0
    for _ in range(CUT_STEPS):
        middle = (low + high) / 2
        if parameter_share(trainable_parameters(model, [slice_.at(middle), *others])) <= ratio:
            low = middle
        else:
            high = middle
    return slice_.at(low)


def row(
    model: SliceableModel,
    data: Batches,
    test: Batches,
    config: ReadaptConfig,
    slices: Sequence[ModelSlice],
    unit: ValidRange,
    seeds: int,
) -> str:
    """One method's means over the seeds."""
    reports = []
    for seed in range(seeds):
        own = replace(config, seed=seed, training=replace(config.training, seed=seed))
        reports.append(readapt(model, data, own, slice_=slices or None, test=test, valid_range=unit).report)
    told = [report.accuracies for report in reports]
    cells = [f"{reports[0].training_parameter_ratio:.2%}"]
    cells += [
        f"{mean(getattr(accuracies, name) for accuracies in told):.2%}"
        for name in ("original", "retrained", "reattack", "clean_before", "clean_after")
    ]
    reached = [
        next((record.epoch for record in report.training.curve if record.measured["retrained_accuracy"] == 1), None)
        for report in reports
    ]
    cells.append("/".join("-" if epoch is None else str(epoch) for epoch in reached))
    cells.append(f"{mean(report.training.seconds for report in reports):.1f} s")
    return f"| {config.method} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
