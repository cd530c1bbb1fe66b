"""What all configs ask of their values. Free of torch."""

from dataclasses import fields
from typing import Any, TypeVar

from neusemslice.errors import ConfigError

ConfigT = TypeVar("ConfigT")
MAX_SEED = 2**32 - 1


def require_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises ConfigError unless `value` is one of the choices."""
    if value not in choices:
        raise ConfigError(f"{field}={value!r} is unknown.", field=field, hint=f"Use one of: {', '.join(choices)}.")


def require_range(field: str, value: object, expected: str, *, holds: bool) -> None:
    """Raises ConfigError with what is `expected` unless it `holds`."""
    if not holds:
        raise ConfigError(f"{field}={value} is out of range.", field=field, hint=f"Use {expected}.")


def require_seed(seed: int) -> None:
    """Raises ConfigError unless generators take the seed."""
    require_range("seed", seed, "0 to 2**32 - 1", holds=0 <= seed <= MAX_SEED)


def from_dict(config: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    """A config from its fields by name.

    Raises:
        ConfigError: a field is unknown or a value is refused.
    """
    known = sorted(field.name for field in fields(config))  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ConfigError(
                f"{name!r} is no field of a {config.__name__}.", field=name, hint=f"Known: {', '.join(known)}."
            )
    return config(**values)
