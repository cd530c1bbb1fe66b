"""Every error this library raises on purpose, one tree, free of torch.

NeuSemSliceError
├── ConfigError             a parameter is unknown, out of range, or contradicts another
├── TargetError             no cut reaches the compression or accuracy that was asked for
├── UnsupportedModelError   the network has an operation the engine cannot slice exactly; names the node
├── ArchitectureError       an architecture description cannot be built
├── WeightsError            a weights file is damaged, does not fit the architecture, or holds NaN
│   └── UnsafeFileError     the file would need code from the file to be read (pickle, TorchScript)
├── DatasetError            a dataset file is damaged, empty, or does not fit the model
├── CheckpointError         a produced file (checkpoint, slice) cannot be read back
├── SliceMismatchError      a slice belongs to another model
├── RestructureError        the smaller network failed its equality proof
├── CapacityError           no neuron is free for another task
├── DivergedError           a training's loss became NaN or infinite
└── StoppedError            the caller's should_stop() asked to stop
"""

from typing import Any


class NeuSemSliceError(Exception):
    """Base of the tree. `message` says what was wrong and where, `hint` what to do about it."""

    code = "neusemslice_error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ConfigError(NeuSemSliceError):
    """A parameter is unknown, out of range, or contradicts another."""

    code = "invalid_config"

    def __init__(self, message: str, *, field: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field = field


class TargetError(NeuSemSliceError):
    """No cut reaches the compression or accuracy that was asked for; the message says what the nearest ones give."""

    code = "target_unreachable"


class UnsupportedModelError(NeuSemSliceError):
    """The network has an operation the engine cannot slice exactly."""

    code = "unsupported_model"

    def __init__(self, message: str, *, node: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.node = node


class ArchitectureError(NeuSemSliceError):
    """An architecture description cannot be built; `where` points into the description."""

    code = "invalid_architecture"

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.where = where


class WeightsError(NeuSemSliceError):
    """A weights file is damaged, does not fit the architecture, or holds NaN."""

    code = "invalid_weights"


class UnsafeFileError(WeightsError):
    """The file could only be read by running code that it brings along."""

    code = "unsafe_file"


class DatasetError(NeuSemSliceError):
    """A dataset file is damaged, empty, or does not fit the model."""

    code = "invalid_dataset"


class CheckpointError(NeuSemSliceError):
    """A produced file (checkpoint, slice) cannot be read back."""

    code = "invalid_checkpoint"


class SliceMismatchError(NeuSemSliceError):
    """A slice belongs to another model."""

    code = "slice_mismatch"


class RestructureError(NeuSemSliceError):
    """The smaller network does not compute what the masked one computes."""

    code = "restructure_failed"


class CapacityError(NeuSemSliceError):
    """No neuron is free for another task."""

    code = "no_capacity"


class DivergedError(NeuSemSliceError):
    """A training's loss became NaN or infinite; `network` is as it was after epoch `last_good` (0: as it came)."""

    code = "training_diverged"

    def __init__(self, message: str, *, network: Any, last_good: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.network = network
        self.last_good = last_good


class StoppedError(NeuSemSliceError):
    """The caller's should_stop() asked to stop."""

    code = "stopped"
