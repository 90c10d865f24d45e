"""Checks of single keys of zonegw.toml, for the modules that own a table of it."""

from collections.abc import Iterable, Mapping
from typing import Any

from zonegw.errors import ConfigError


def only(table: Mapping[str, Any], prefix: str, names: Iterable[str]) -> None:
    """Raises ConfigError for a key that is none of `names`."""
    known = sorted(names)
    for key in table:
        if key not in known:
            raise ConfigError(f"unknown key {prefix}{key}; known are: {', '.join(known)}")


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def positive_or_zero(table: Mapping[str, Any], name: str, default: float) -> float:
    """A number; `name` is the full one, of which the last part is looked up."""
    value = table.get(_last(name), default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ConfigError(f"{name} must be a number, 0 or more, not {value!r}")
    return value


def whole(table: Mapping[str, Any], name: str, default: int, *, least: int = 0) -> int:
    """A whole number of at least `least`; 0 is always allowed, and means none or no bound."""
    value = table.get(_last(name), default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0 or 0 < value < least:
        raise ConfigError(f"{name} must be 0 or a whole number of at least {max(least, 1)}, not {value!r}")
    return value


def truth(table: Mapping[str, Any], name: str, default: bool) -> bool:
    value = table.get(_last(name), default)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {value!r}")
    return value


def some_of(table: Mapping[str, Any], name: str, default: tuple[str, ...], allowed: tuple[str, ...]) -> tuple[str, ...]:
    """A list of some of `allowed`."""
    value = table.get(_last(name), list(default))
    if not isinstance(value, list) or any(item not in allowed for item in value):
        raise ConfigError(f"{name} must be a list of some of {', '.join(allowed)}, not {value!r}")
    return tuple(value)
