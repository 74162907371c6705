"""Checks of a run's settings, before it takes a step: one that makes no sense is named."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch

from videoar.training.clips import ClipsConfig


def expect(config: Any, meaning: str, holds: Callable[[Any], bool], *names: str) -> None:
    """Refuse a config that has a setting of these names that makes no sense.

    Args:
        config: a dataclass of settings.
        meaning: what is expected, for the message.
        holds: whether a value is that; NaN never is.
        names: of the settings.

    Raises:
        ValueError: names the setting, what was expected and its value.
    """
    for name in names:
        if not holds(value := getattr(config, name)):
            raise ValueError(f"{type(config).__name__}: expected {name} {meaning}, got {value!r}")


def expect_at_least(config: Any, least: int, *names: str) -> None:
    """A finite number of at least `least`."""
    expect(config, f"of at least {least}", lambda value: isfinite(value) and value >= least, *names)


def expect_positive(config: Any, *names: str) -> None:
    """A finite number above 0."""
    expect(config, "above 0", lambda value: isfinite(value) and value > 0, *names)


def expect_finite(config: Any, *names: str) -> None:
    """A finite number, or None where a setting may be left out."""
    expect(config, "to be finite", lambda value: value is None or isfinite(value), *names)


def expect_share(config: Any, *names: str) -> None:
    """A number from 0 to 1."""
    expect(config, "in [0, 1]", lambda value: 0 <= value <= 1, *names)


def expect_decay(config: Any, *names: str) -> None:
    """A number from 0 to below 1, which forgets."""
    expect(config, "in [0, 1)", lambda value: 0 <= value < 1, *names)


def expect_run(config: Any) -> None:
    """What the settings of every run have."""
    expect_at_least(config, 1, "steps")
    expect_at_least(config, 0, "log_every", "evaluate_every", "checkpoint_every")
    expect_decay(config, "average")
    expect(config, "to be one of PyTorch's floating-point types", _is_floating, "stored_as")


def expect_wrap(data: ClipsConfig, wrap: bool, name: str) -> None:
    """Sprites that move as those of the model `name` did; a user's clips may move otherwise."""
    if data.kind == "sprites" and data.wrap != wrap:
        raise ValueError(f"data.wrap: expected {wrap}, as the model of {name} has it, got {data.wrap}")


def expect_no_sink(expected: str, sink: int, clips: int) -> None:
    """No sink with several clips: a stream has other positions behind a sink than training on clips in a row."""
    if sink and clips > 1:
        raise ValueError(
            f"{expected}, as a stream closes up the time of dropped units behind the sink and training does not, "
            f"got sink {sink} and {clips} clips"
        )


def _is_floating(name: str) -> bool:
    kind = getattr(torch, name, None)
    return isinstance(kind, torch.dtype) and kind.is_floating_point
