"""What a re-adaptation may be asked for."""

import json
import math
import subprocess
import sys
from typing import Any

import pytest

from neusemslice.config import SlicingConfig
from neusemslice.errors import ConfigError
from neusemslice.readaptation_config import AttackConfig, ReadaptConfig
from neusemslice.training_config import TrainingConfig


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"epsilons": ()}, "epsilons"),
        ({"epsilons": (0.1, 0.0)}, "epsilons"),
        ({"epsilons": (8.0,)}, "epsilons"),
        ({"epsilons": (math.nan,)}, "epsilons"),
        ({"epsilons": (math.inf,), "norm": "2"}, "epsilons"),
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "steps"),
        ({"step": 0.0}, "step"),
        ({"step": 1.5}, "step"),
    ],
)
def test_an_attack_out_of_range_is_refused_at_birth(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        AttackConfig(**values)
    assert refused.value.field == field
    assert refused.value.hint


def test_a_length_may_exceed_the_range_of_one_value() -> None:
    assert AttackConfig(norm="2", epsilons=(1.5,)).epsilons == (1.5,)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"samples": 0}, "samples"),
        ({"validation_share": 1.0}, "validation_share"),
        ({"seed": -1}, "seed"),
        ({"method": "full", "slicing": SlicingConfig()}, "slicing"),
        ({"method": "global", "slicing": SlicingConfig()}, "slicing"),
        ({"method": "semantic", "deeparc_threshold": 0.9}, "deeparc_threshold"),
        ({"method": "deeparc", "deeparc_threshold": 0.9}, "deeparc_threshold"),
        ({"method": "semantic+deeparc", "deeparc_threshold": 1.1}, "deeparc_threshold"),
    ],
)
def test_what_contradicts_itself_is_refused_at_birth(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ReadaptConfig(**values)
    assert refused.value.field == field
    assert refused.value.hint


def test_each_method_has_its_analyses() -> None:
    found = {
        method: [(own.strategy, own.cut) for own in ReadaptConfig(method=method).slicing_configs()]
        for method in ("full", "deeparc", "global", "categorywise", "semantic", "semantic+deeparc")
    }
    assert found == {
        "full": [],
        "deeparc": [("deeparc", 0.99)],
        "global": [("global", 0.5)],
        "categorywise": [("categorywise", 0.5)],
        "semantic": [("semantic", 0.99)],
        "semantic+deeparc": [("semantic", 0.99), ("deeparc", 0.99)],
    }
    given = ReadaptConfig(method="semantic+deeparc", slicing=SlicingConfig(threshold=0.8), deeparc_threshold=0.7)
    assert [own.cut for own in given.slicing_configs()] == [0.8, 0.7]


def test_configs_survive_json() -> None:
    whole = ReadaptConfig(
        method="semantic+deeparc",
        attack=AttackConfig(method="pgd", epsilons=(0.1, 8 / 255), norm="inf", steps=7),
        samples=50,
        training=TrainingConfig(epochs=3, patience=1),
        slicing=SlicingConfig(threshold=0.9),
        deeparc_threshold=0.9,
        seed=3,
    )
    assert ReadaptConfig.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    assert ReadaptConfig.from_dict(json.loads(json.dumps(ReadaptConfig().to_dict()))) == ReadaptConfig()
    for kind in (AttackConfig, ReadaptConfig):
        with pytest.raises(ConfigError, match="'epsilon' is no field"):
            kind.from_dict({"epsilon": 0.1})


def test_an_unknown_word_names_its_field() -> None:
    """In a process of its own, where no type checker comes first."""
    code = """
from neusemslice.errors import ConfigError
from neusemslice.readaptation_config import AttackConfig, ReadaptConfig
for kind, values in ((AttackConfig, {"method": "cw"}), (AttackConfig, {"norm": "1"}), (ReadaptConfig, {"method": "x"})):
    try:
        kind(**values)
    except ConfigError as error:
        print(error.field, "is unknown" in str(error))
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split("\n")[:3] == ["method True", "norm True", "method True"]
