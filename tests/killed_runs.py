"""What a training run's steps lose, whole or killed on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from videoar.training.logging import RunLog


class Killed(Exception):
    pass


def losses(
    train: Callable, config: Any, monkeypatch: pytest.MonkeyPatch, *, killed_after: int | None = None
) -> dict[int, float]:
    """The loss of every step that `train(config)` takes, by its number; a killed run takes steps up to that one."""
    found: dict[int, float] = {}

    def note(self: RunLog, step: int, metrics: dict[str, float]) -> None:
        if step == killed_after:
            raise Killed
        found[step] = metrics["loss"]

    monkeypatch.setattr(RunLog, "step", note)
    if killed_after is None:
        train(config)
    else:
        with pytest.raises(Killed):
            train(config)
    return found
