"""How well a network does before and after its re-adaptation, clean and attacked."""

from dataclasses import dataclass

from torch import nn

from neusemslice.evaluation import evaluate
from neusemslice.progress import Progress
from neusemslice.readaptation.attacks import attack
from neusemslice.readaptation.lots import Lots, at_once, seed_of
from neusemslice.readaptation.valid_range import ValidRange
from neusemslice.readaptation_config import ReadaptConfig
from neusemslice.tracing import SliceableModel
from neusemslice.training import Samples, batches_of


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """Shares of samples classified right; None where there are no such samples.

    Attributes:
        clean_before, clean_after: of the original and the repaired network on `test_samples` clean samples that were
            not trained on.
        original: of the original network on the attacked or new samples trained on.
        retrained: of the repaired network on the same samples (RA).
        original_others: of the original network on `attacked_others` other samples, attacked.
        transferred: of the repaired network on the same attacked samples, which were made for the original.
        reattack: of the repaired network on the other samples attacked afresh, through itself (RAA).
    """

    clean_before: float | None
    clean_after: float | None
    original: float | None
    retrained: float | None
    original_others: float | None
    transferred: float | None
    reattack: float | None
    test_samples: int
    attacked_others: int


class Judge:
    """Measures accuracies of a model and its repaired network on the lots."""

    def __init__(self, model: SliceableModel, lots: Lots, progress: Progress) -> None:
        self._model, self._lots, self._progress = model, lots, progress

    def after_an_epoch(self, network: nn.Module) -> dict[str, float]:
        """For the curve: on the counterparts, and on the clean others."""
        lots = {"retrained_accuracy": self._lots.counterparts, "clean_accuracy": self._lots.others}
        measured = {name: self._accuracy(network, lot) for name, lot in lots.items()}
        return {name: value for name, value in measured.items() if value is not None}

    def judge(self, network: nn.Module, config: ReadaptConfig, unit: ValidRange | None) -> Accuracies:
        """Attack the network afresh and measure everything."""
        lots, original = self._lots, self._model.graph_module
        reattacked = self._reattacked(network, config, unit)
        asked = {
            "clean_before": (original, lots.test),
            "clean_after": (network, lots.test),
            "original": (original, lots.counterparts),
            "retrained": (network, lots.counterparts),
            "original_others": (original, lots.attacked_others),
            "transferred": (network, lots.attacked_others),
            "reattack": (network, reattacked),
        }
        found: dict[str, float | None] = {}
        for done, (name, (judged, lot)) in enumerate(asked.items()):
            self._progress.report("evaluate", done, len(asked))
            found[name] = self._accuracy(judged, lot)
        self._progress.report("evaluate", len(asked), len(asked))
        return Accuracies(
            **found,
            test_samples=0 if lots.test is None else len(lots.test),
            attacked_others=0 if reattacked is None else len(reattacked),
        )

    def _reattacked(self, network: nn.Module, config: ReadaptConfig, unit: ValidRange | None) -> Samples | None:
        if config.attack is None or unit is None or self._lots.others is None:
            return None
        return attack(
            network,
            self._lots.others,
            config.attack,
            unit,
            seed=seed_of(config.seed, "reattack"),
            at_once=at_once(self._model),
            stage="reattack",
            progress=self._progress,
        )

    def _accuracy(self, network: nn.Module, samples: Samples | None) -> float | None:
        if samples is None:
            return None
        batches = batches_of(samples, at_once(self._model))
        return evaluate(network, batches, should_stop=self._progress.should_stop).accuracy
