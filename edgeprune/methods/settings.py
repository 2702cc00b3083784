"""Check the settings of methods, and change nested settings by name."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Final, TypeVar

from edgeprune.errors import ConfigError

LARGEST: Final = 1e6
"""Largest allowed setting; anything above can only be a mistake."""

_Config = TypeVar("_Config")


def out_of_range(
    config: object, *, positive: Sequence[str] = (), least: Sequence[str] = (), counts: Sequence[str] = ()
) -> list[str]:
    """Return what is wrong with some settings, in words. A setting that is None is not checked.

    Args:
        config: the object that has the settings.
        positive: names of settings above 0.
        least: names of settings that are 0 or more.
        counts: names of whole numbers that are 1 or more.
    """
    rules = (
        [(name, 0 < _value(config, name) <= LARGEST, f"0 < {name} <= {LARGEST:g}") for name in positive]
        + [(name, 0 <= _value(config, name) <= LARGEST, f"0 <= {name} <= {LARGEST:g}") for name in least]
        + [(name, _value(config, name) >= 1, f"{name} >= 1") for name in counts]
    )
    return [f"{says}, got {getattr(config, name)}" for name, right, says in rules if not right]


def refuse(faults: Sequence[str]) -> None:
    """Raise if there are faults.

    Raises:
        ConfigError: there are faults; the message lists all of them.
    """
    if faults:
        raise ConfigError(f"Expected {'; '.join(faults)}")


def _value(config: object, name: str) -> float:
    """Return a setting as a number; 1, which is in every range, if it is None, and NaN if it is no number."""
    found = getattr(config, name)
    return 1.0 if found is None else float(found) if isinstance(found, int | float) else math.nan


def settings(config: Any) -> dict[str, Any]:
    """Return all settings by name, including those of nested dataclasses."""
    found = dict[str, Any]()
    for field in fields(config):
        inner = getattr(config, field.name)
        found |= settings(inner) if is_dataclass(inner) else {field.name: inner}
    return found


def with_settings(config: _Config, changed: Mapping[str, Any]) -> _Config:
    """Return `config` with some settings changed, however deeply they are nested.

    Raises:
        ConfigError: a setting does not exist, or a value is out of range.
    """
    if unknown := sorted(changed.keys() - settings(config).keys()):
        raise ConfigError(f"Expected settings among {', '.join(settings(config))}; got {', '.join(unknown)}")
    return _changed(config, changed)


def _changed(config: Any, changed: Mapping[str, Any]) -> Any:
    own = {field.name: getattr(config, field.name) for field in fields(config)}
    inner = {name: _changed(part, changed) for name, part in own.items() if is_dataclass(part)}
    return replace(
        config, **inner, **{name: changed[name] for name in own.keys() & changed.keys() if name not in inner}
    )
