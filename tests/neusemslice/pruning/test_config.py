"""Pruning configs that are refused, and the form that a service stores."""

import json
import subprocess
import sys

import pytest

from neusemslice.errors import ConfigError
from neusemslice.pruning_config import PruningConfig
from neusemslice.training_config import TrainingConfig


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "iterations"),
        ({"iterations": 3, "sparsity": 0.5}, "sparsity"),
        ({"iterations": 3, "max_accuracy_drop": 0.01}, "max_accuracy_drop"),
        ({"sparsity": 0.5, "max_accuracy_drop": 0.0}, "max_accuracy_drop"),
        ({"iterations": 0}, "iterations"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": 0.0}, "sparsity"),
        ({"max_accuracy_drop": 1.0}, "max_accuracy_drop"),
        ({"max_accuracy_drop": -0.1}, "max_accuracy_drop"),
        ({"sparsity": float("nan")}, "sparsity"),
        ({"iterations": 3, "amount": 0.0}, "amount"),
        ({"iterations": 3, "amount": 1.0}, "amount"),
        ({"iterations": 3, "distill": True}, "distill"),
    ],
)
def test_is_refused_at_birth(values: dict, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PruningConfig(**values)
    assert caught.value.field == field
    assert caught.value.hint


def test_an_unknown_method_is_named() -> None:
    """In a process of its own: here every type is checked before the config can."""
    code = """
from neusemslice.errors import ConfigError
from neusemslice.pruning_config import PruningConfig
try:
    PruningConfig(iterations=3, method="uniform")
except ConfigError as error:
    print(error.field, error.hint)
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output == "method Use one of: lamp, global, uniform+, erk.\n"


@pytest.mark.parametrize("training", [None, TrainingConfig(epochs=2, optimizer="sgd")])
def test_survives_json(training: TrainingConfig | None) -> None:
    config = PruningConfig(method="erk", sparsity=0.5, fine_tuning=training, distill=training is not None)
    assert PruningConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ConfigError, match="rate") as caught:
        PruningConfig.from_dict({"iterations": 3, "rate": 0.1})
    assert caught.value.field == "rate"
