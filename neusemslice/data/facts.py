"""What is known about a dataset without reading its samples."""

from dataclasses import dataclass
from typing import Any

from neusemslice.data.preprocess import Preprocess
from neusemslice.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """Shape, categories and counts of a canonical dataset.

    Args:
        input_shape: one sample as the network sees it, channels first, without the batch axis.
        class_names: one name a category, in label order.
        samples: split name -> number of samples of each category.
        preprocess: what `Dataset.batches` does to the stored samples.
    """

    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    samples: dict[str, tuple[int, ...]]
    preprocess: Preprocess

    @property
    def categories(self) -> int:
        """Number of categories."""
        return len(self.class_names)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "input_shape": list(self.input_shape),
            "categories": self.categories,
            "class_names": list(self.class_names),
            "samples": {
                split: {"total": sum(counts), "per_category": list(counts)} for split, counts in self.samples.items()
            },
            "preprocess": self.preprocess.to_dict(),
        }


def check_dataset_fits(facts: DatasetFacts, input_shape: tuple[int, ...], categories: int) -> None:
    """Check that a network with this input shape and so many outputs can learn from the dataset.

    Raises:
        DatasetError: the shapes differ, or the dataset has labels the network has no output for.
    """
    if facts.input_shape != tuple(input_shape):
        raise DatasetError(
            f"The dataset's samples are {list(facts.input_shape)}, the model takes {list(input_shape)}.",
            hint="Import the dataset with preprocess.resize, or name the model's input_shape right.",
        )
    if facts.categories > categories:
        raise DatasetError(
            f"The dataset has {facts.categories} categories, the model has {categories} outputs.",
            hint="Use a dataset of the model's categories, or replace the model's last layer.",
        )
