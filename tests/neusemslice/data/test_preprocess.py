import json
from typing import Any

import pytest

from neusemslice.data import DatasetFacts, Preprocess, check_dataset_fits
from neusemslice.errors import ConfigError, DatasetError


def test_a_preprocess_survives_json() -> None:
    preprocess = Preprocess(resize=(32, 48), scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess
    assert Preprocess.from_dict({}) == Preprocess()


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ([], "preprocess"),
        ({"crop": [2, 2]}, "crop"),
        ({"resize": [32]}, "resize"),
        ({"resize": [32, 0]}, "resize"),
        ({"resize": [32, 5000]}, "resize"),
        ({"resize": [True, 3]}, "resize"),
        ({"resize": 32}, "resize"),
        ({"scale": 0}, "scale"),
        ({"scale": "255"}, "scale"),
        ({"scale": [1.0]}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"mean": 0.5}, "mean"),
        ({"mean": [None]}, "mean"),
        ({"mean": [[0.5]]}, "mean"),
        ({"std": [0.0]}, "std"),
        ({"std": [-1.0]}, "std"),
        ({"mean": [0.1, 0.2], "std": [1.0]}, "std"),
    ],
)
def test_false_values_are_refused_by_field(values: Any, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Preprocess.from_dict(values)
    assert caught.value.field == field
    assert caught.value.hint


def test_channels_are_counted() -> None:
    Preprocess(mean=(0.5,), std=(0.1,)).check_channels(3)
    Preprocess(mean=(0.5,) * 3).check_channels(3)
    with pytest.raises(ConfigError, match="mean has 3 values; the samples have 1 channels"):
        Preprocess(mean=(0.5,) * 3).check_channels(1)


FACTS = DatasetFacts(
    input_shape=(3, 32, 32), class_names=("cat", "dog"), samples={"train": (3, 4)}, preprocess=Preprocess()
)


def test_facts_are_json() -> None:
    assert json.loads(json.dumps(FACTS.to_dict())) == {
        "input_shape": [3, 32, 32],
        "categories": 2,
        "class_names": ["cat", "dog"],
        "samples": {"train": {"total": 7, "per_category": [3, 4]}},
        "preprocess": {"resize": None, "scale": 1.0, "mean": [], "std": []},
    }


def test_a_dataset_must_fit_the_model() -> None:
    check_dataset_fits(FACTS, (3, 32, 32), 2)
    check_dataset_fits(FACTS, (3, 32, 32), 10)
    with pytest.raises(DatasetError, match=r"samples are \[3, 32, 32\], the model takes \[3, 224, 224\]"):
        check_dataset_fits(FACTS, (3, 224, 224), 2)
    with pytest.raises(DatasetError, match="has 2 categories, the model has 1 outputs"):
        check_dataset_fits(FACTS, (3, 32, 32), 1)
