"""A run's settings: a YAML file checked against a dataclass, with dotted overrides."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

Config = TypeVar("Config")


def load_config(path: str | Path | None, overrides: Sequence[str], schema: type[Config]) -> Config:
    """Read a YAML file, apply overrides such as `optimizer.learning_rate=1e-3`, and build the dataclass.

    Args:
        path: of the YAML file; None starts from the schema's defaults.
        overrides: `dotted.key=value`; the value is YAML too.
        schema: a dataclass, whose fields may be dataclasses.

    Raises:
        ValueError: no YAML, an unknown key, a value of the wrong type or an override without `=`.
    """
    values = {} if path is None else _read(path) or {}
    if not isinstance(values, dict):
        raise ValueError(f"config: expected a mapping in {path}, got {type(values).__name__}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"config: expected key=value, got {override!r}")
        *parents, last = key.strip().split(".")
        place = values
        for parent in parents:
            if not isinstance(place.setdefault(parent, {}), dict):
                raise ValueError(f"config: {key} goes through {parent}, which is not a group")
            place = place[parent]
        place[last] = _parsed(text, override)
    return build(values, schema)


def _read(path: str | Path) -> Any:
    try:
        return _parsed(Path(path).read_text(), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"config: expected YAML in {path}, got {error}") from None


def _parsed(text: str, where: str | Path) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"config: expected YAML in {where}, got {' '.join(str(error).split())}") from None


def build(values: dict[str, Any], schema: type[Config], *, where: str = "") -> Config:
    """Build a (nested) dataclass from plain values; `where` is the dotted path so far, for messages."""
    hints = typing.get_type_hints(schema)
    unknown = set(values) - {field.name for field in dataclasses.fields(schema)}
    if unknown:
        known = ", ".join(field.name for field in dataclasses.fields(schema))
        raise ValueError(f"config: unknown key {where}{min(map(str, unknown))}; expected one of {known}")
    return schema(**{name: _convert(value, hints[name], f"{where}{name}") for name, value in values.items()})


def _convert(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"config: expected a group at {where}, got {value!r}")
        return build(value, hint, where=f"{where}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(kind for kind in arguments if kind is not type(None)), where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"config: expected a list at {where}, got {value!r}")
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(value):
            raise ValueError(f"config: expected {len(kinds)} values at {where}, got {value!r}")
        return tuple(_convert(item, kind, where) for item, kind in zip(value, kinds, strict=True))
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4 as text
        except ValueError:
            pass
    if hint in (int, str, bool, float) and type(value) is not hint:
        raise ValueError(f"config: expected {hint.__name__} at {where}, got {value!r}")
    return value
