"""The samples of a re-adaptation: what is drawn, attacked and held out, and what the result is judged by."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from neusemslice.batches import Batches
from neusemslice.progress import Progress
from neusemslice.readaptation.attacks import AT_ONCE, attack
from neusemslice.readaptation.pairs import Pairs, held_out
from neusemslice.readaptation.valid_range import ValidRange
from neusemslice.readaptation_config import ReadaptConfig
from neusemslice.reading import samples_at_once
from neusemslice.tracing import SliceableModel
from neusemslice.training import Joined, Samples, Subset, batches_of


@dataclass(frozen=True, eq=False)
class Lots:
    """Lots of samples; empty ones are None.

    Attributes:
        pairs: clean samples and counterparts, as a training takes them.
        clean: the clean samples that are trained on.
        counterparts: the attacked or new samples that are trained on.
        test: clean samples that are not trained on.
        others: some of them, for what is measured often or attacked.
        attacked_others: the others, attacked through the original network; None with new samples.
        validation: batches of clean samples and counterparts that are held out.
    """

    clean: Samples
    counterparts: Samples
    pairs: Pairs
    test: Samples | None
    others: Samples | None
    attacked_others: Samples | None
    validation: Batches | None


@dataclass(frozen=True, eq=False)
class Given:
    """What the caller brought: samples of what the network knows, and perhaps new ones, test data, validation data."""

    known: Samples
    new: Samples | None
    test: Samples | None
    validation: Samples | None


def gather(
    model: SliceableModel, given: Given, config: ReadaptConfig, valid_range: ValidRange | None, progress: Progress
) -> Lots:
    """Draw all lots by the config's seed, and attack what is to be attacked, through the original network.

    Args:
        valid_range: of the inputs; None where new samples take the attacked ones' place.

    Raises:
        DatasetError: there are too few samples for what is held out.
    """
    order = _order(len(given.known), config.seed, "known")
    clean: Samples = Subset(given.known, order[: config.samples])
    counterparts = clean if given.new is None else Subset(given.new, _order(len(given.new), config.seed, "new"))
    test = given.test or Subset(given.known, order[config.samples :])
    others = Subset(test, _order(len(test), config.seed, "others")[: config.samples])
    held: list[Samples] = []
    if given.validation is not None:
        held = [Subset(given.validation, _order(len(given.validation), config.seed, "held")[: config.samples])]
        held += held if given.new is None else []
    elif config.training.patience is not None:
        clean, held_clean = held_out(clean, config.validation_share, "drawn")
        counterparts, held_counterparts = held_out(counterparts, config.validation_share, "new")
        held = [held_clean, held_counterparts]
    attacked_others = None
    if config.attack is not None and valid_range is not None:
        lots = [counterparts, others, *held[1:]]
        attacked = attack(
            model.graph_module,
            Joined(lots),
            config.attack,
            valid_range,
            seed=seed_of(config.seed, "attack"),
            at_once=at_once(model),
            progress=progress,
        )
        counterparts, attacked_others, *held[1:] = _parted(attacked, [len(lot) for lot in lots])
    return Lots(
        clean,
        counterparts,
        Pairs.of(clean, counterparts),
        test if len(test) else None,
        others if len(others) else None,
        attacked_others if len(others) else None,
        batches_of(Joined(held), at_once(model)) if held else None,
    )


def at_once(model: SliceableModel) -> int:
    """Samples that are attacked or evaluated at once: what an attack takes, or fewer where memory is short."""
    return min(AT_ONCE, samples_at_once(model))


def seed_of(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose."""
    return zlib.crc32(f"{seed} {purpose}".encode())


def _order(count: int, seed: int, purpose: str) -> Int64[Tensor, " rows"]:
    """All rows, in an order drawn for that purpose."""
    return torch.from_numpy(np.random.default_rng(seed_of(seed, purpose)).permutation(count))


def _parted(samples: Samples, counts: list[int]) -> list[Samples]:
    """Joined lots, apart again."""
    return [Subset(samples, rows) for rows in torch.arange(len(samples)).split(counts)]
