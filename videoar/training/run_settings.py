"""The settings that a run was begun with, kept in its folder: a run goes on under the same ones or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from videoar.model_folder import read_json, write_json

# What neither the weights nor the model of a finished run depend on.
ASIDE = frozenset(("output", "cache", "prompts", "evaluation_clips", "gradient_checkpointing"))
ASIDE |= {"log_every", "evaluate_every", "checkpoint_every"}
# What may change from a checkpoint on besides: how far the run goes, and what is made of its weights at the end.
LATER = frozenset(("steps", "stages", "sampling", "calibration", "stored_as"))


class Difference(NamedTuple):
    """A setting, by its dotted name, that is not what it was."""

    key: str
    before: Any
    now: Any


def plain_settings(config: Any) -> dict[str, Any]:
    """The kind of a run and its settings, as JSON reads them back."""
    return {"run": type(config).__name__, **json.loads(json.dumps(asdict(config)))}


def differences(
    before: dict[str, Any], now: dict[str, Any], *, apart: frozenset[str] = frozenset()
) -> list[Difference]:
    """Settings that two runs both have and do not share, but for those `apart`."""
    return [found for found in _differences(before, now, "") if found.key.partition(".")[0] not in apart]


def _differences(before: dict[str, Any], now: dict[str, Any], where: str) -> Iterator[Difference]:
    for name in (name for name in now if name in before):
        one, other = before[name], now[name]
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{where}{name}.")
        elif one != other:
            yield Difference(f"{where}{name}", one, other)


def check_settings(config: Any) -> None:
    """Refuse to go on in a run's folder, `config.output`, under other settings; an older one has none to compare.

    Raises:
        ValueError: names the settings and both values.
    """
    path = Path(config.output) / "settings.json"
    if not path.is_file():
        return
    if found := differences(read_json(path), plain_settings(config), apart=ASIDE | LATER):
        said = "; ".join(f"{key}: expected {before!r}, got {now!r}" for key, before, now in found)
        raise ValueError(f"{config.output} has checkpoints of other settings, so give another output, or {said}")


def keep_settings(config: Any) -> None:
    """Write `settings.json` into the run's folder."""
    write_json(Path(config.output) / "settings.json", plain_settings(config))
