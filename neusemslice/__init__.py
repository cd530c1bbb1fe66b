"""Neuron-level semantic slicing of trained networks (NeuSemSlice, arXiv 2407.20281).

The names below are the public surface. They are loaded on first use, so `neusemslice.config` and `neusemslice.errors`
stay importable without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neusemslice.checkpoint import load_checkpoint as load_checkpoint
    from neusemslice.comparison import Comparison as Comparison
    from neusemslice.comparison import compare as compare
    from neusemslice.comparison_config import ComparisonConfig as ComparisonConfig
    from neusemslice.config import SlicingConfig as SlicingConfig
    from neusemslice.contribution import Contributions as Contributions
    from neusemslice.contribution import Statistics as Statistics
    from neusemslice.contribution import measure_statistics as measure_statistics
    from neusemslice.contribution import score_many as score_many
    from neusemslice.contribution import score_neurons as score_neurons
    from neusemslice.errors import NeuSemSliceError as NeuSemSliceError
    from neusemslice.errors import UnsupportedModelError as UnsupportedModelError
    from neusemslice.evaluation import Evaluation as Evaluation
    from neusemslice.evaluation import evaluate as evaluate
    from neusemslice.fine_tuning import fine_tune as fine_tune
    from neusemslice.increment_config import IncrementConfig as IncrementConfig
    from neusemslice.increments import Incremented as Incremented
    from neusemslice.increments import IncrementMemory as IncrementMemory
    from neusemslice.increments import TaskFree as TaskFree
    from neusemslice.increments import learn_increment as learn_increment
    from neusemslice.partials import Shard as Shard
    from neusemslice.pruning import prune_weights as prune_weights
    from neusemslice.pruning_config import PruningConfig as PruningConfig
    from neusemslice.readaptation import Readapted as Readapted
    from neusemslice.readaptation import ValidRange as ValidRange
    from neusemslice.readaptation import attack as attack
    from neusemslice.readaptation import readapt as readapt
    from neusemslice.readaptation_config import AttackConfig as AttackConfig
    from neusemslice.readaptation_config import ReadaptConfig as ReadaptConfig
    from neusemslice.restructuring import restructure as restructure
    from neusemslice.sharding import analyse_shard as analyse_shard
    from neusemslice.sharding import merge_partials as merge_partials
    from neusemslice.slicing import ModelSlice as ModelSlice
    from neusemslice.slicing import slice_model as slice_model
    from neusemslice.tracing import SliceableModel as SliceableModel
    from neusemslice.tracing import trace as trace
    from neusemslice.training_config import TrainingConfig as TrainingConfig

_HOME = {
    "AttackConfig": "readaptation_config",
    "Comparison": "comparison",
    "ComparisonConfig": "comparison_config",
    "Contributions": "contribution",
    "Evaluation": "evaluation",
    "IncrementConfig": "increment_config",
    "IncrementMemory": "increments",
    "Incremented": "increments",
    "ModelSlice": "slicing",
    "NeuSemSliceError": "errors",
    "PruningConfig": "pruning_config",
    "ReadaptConfig": "readaptation_config",
    "Readapted": "readaptation",
    "Shard": "partials",
    "SliceableModel": "tracing",
    "SlicingConfig": "config",
    "Statistics": "contribution",
    "TrainingConfig": "training_config",
    "TaskFree": "increments",
    "UnsupportedModelError": "errors",
    "ValidRange": "readaptation",
    "analyse_shard": "sharding",
    "attack": "readaptation",
    "compare": "comparison",
    "evaluate": "evaluation",
    "fine_tune": "fine_tuning",
    "learn_increment": "increments",
    "load_checkpoint": "checkpoint",
    "measure_statistics": "contribution",
    "merge_partials": "sharding",
    "prune_weights": "pruning",
    "readapt": "readaptation",
    "restructure": "restructuring",
    "score_many": "contribution",
    "score_neurons": "contribution",
    "slice_model": "slicing",
    "trace": "tracing",
}

__all__ = tuple(sorted(_HOME))


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
