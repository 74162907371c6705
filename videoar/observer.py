"""Watching sampling from outside: `videoar profile` times its parts through this."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Observer(Protocol):
    """Is told which part of sampling begins and ends.

    A part is entered on the stream its work is given to, from one thread, never inside another part and never while a
    CUDA graph is captured. Work outside every part counts as none's. In paper U `frame` is a unit, counted through all
    clips, and `scale` a pass over it, the clean one last.
    """

    def part(
        self, name: str, *, frame: int | None = None, scale: int | None = None
    ) -> AbstractContextManager[object]: ...


class Unobserved:
    """Nobody watches."""

    def part(self, name: str, *, frame: int | None = None, scale: int | None = None) -> AbstractContextManager[object]:
        return _NOTHING


_NOTHING = nullcontext()
UNOBSERVED = Unobserved()
