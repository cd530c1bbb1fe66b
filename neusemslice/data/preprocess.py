"""What happens to a stored sample before a network sees it: y = (x * scale - mean) / std."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from neusemslice.errors import ConfigError

MAX_SIDE = 4096

_EXPECTED = {
    "resize": f"[height, width], each from 1 to {MAX_SIDE}",
    "scale": "a number above 0, such as 0.00392156862745098",
    "mean": "a list of finite numbers",
    "std": "a list of numbers above 0",
}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resizing at import, normalisation at each batch.

    Args:
        resize: height and width every image is brought to at import (bilinear, antialiased), or None. Images only.
        scale: factor on the stored values, such as 1/255.
        mean: subtracted after scaling: one value, or one a channel; empty means 0.
        std: divides after subtracting: one value, or one a channel, all above 0; empty means 1.

    Raises:
        ConfigError: a value is of the wrong type or out of range, or mean and std are of different lengths.
    """

    resize: tuple[int, int] | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.resize is not None and not all(map(_is_side, self.resize)):
            raise _refused("resize", self.resize)
        if not _is_number(self.scale) or self.scale <= 0:
            raise _refused("scale", self.scale)
        if not all(map(_is_number, self.mean)):
            raise _refused("mean", self.mean)
        if not all(_is_number(value) and value > 0 for value in self.std):
            raise _refused("std", self.std)
        if self.mean and self.std and len(self.mean) != len(self.std):
            raise ConfigError(
                f"mean has {len(self.mean)} values and std {len(self.std)}.",
                field="std",
                hint="Give one each a channel.",
            )

    def check_channels(self, channels: int) -> None:
        """Raises ConfigError unless mean and std have one value, or one for each channel."""
        for field in ("mean", "std"):
            count = len(getattr(self, field))
            if count not in (0, 1, channels):
                raise ConfigError(
                    f"{field} has {count} values; the samples have {channels} channels.",
                    field=field,
                    hint="Give one value, or one a channel.",
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Any) -> "Preprocess":
        """Inverse of `to_dict`, from parsed JSON of anyone.

        Raises:
            ConfigError: a field is unknown or a value is refused.
        """
        if not isinstance(values, dict):
            raise ConfigError(
                "preprocess is no JSON object.", field="preprocess", hint="Give resize, scale, mean, std."
            )
        arguments: dict[str, Any] = {}
        for name, value in values.items():
            if name == "resize" and (value is None or _is_list(value, _is_side, 2)):
                arguments[name] = None if value is None else tuple(value)
            elif name == "scale" and _is_number(value):
                arguments[name] = float(value)
            elif name in ("mean", "std") and _is_list(value, _is_number):
                arguments[name] = tuple(map(float, value))
            elif name in _EXPECTED:
                raise _refused(name, value)
            else:
                raise ConfigError(
                    f"{name!r:.80} is no field of preprocess.", field=str(name), hint=f"Known: {', '.join(_EXPECTED)}."
                )
        return cls(**arguments)


def _is_list(value: Any, holds: Callable[[Any], bool], length: int | None = None) -> bool:
    return isinstance(value, list) and all(map(holds, value)) and length in (None, len(value))


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refused(field: str, value: Any) -> ConfigError:
    return ConfigError(f"{field}={value!r:.80} is refused.", field=field, hint=f"Give {_EXPECTED[field]}.")
