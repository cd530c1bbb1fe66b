"""Datasets: a stranger's file becomes one canonical file, and that file becomes batches.

Importing needs numpy and Pillow only; torch is loaded when `open_dataset` or `Dataset` is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neusemslice.data.facts import DatasetFacts as DatasetFacts
from neusemslice.data.facts import check_dataset_fits as check_dataset_fits
from neusemslice.data.importing import import_dataset as import_dataset
from neusemslice.data.limits import ImportLimits as ImportLimits
from neusemslice.data.preprocess import Preprocess as Preprocess

if TYPE_CHECKING:
    from neusemslice.data.dataset import Dataset as Dataset
    from neusemslice.data.dataset import open_dataset as open_dataset

_NEEDS_TORCH = ("Dataset", "open_dataset")


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.dataset"), name)
