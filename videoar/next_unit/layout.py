"""Units laid over a latent grid: the sequence in the order of generation, and who sees whom.

    cells: the tokens of the grid, row-major; of a pyramid, level after level, the grid itself last
    sequence: unit after unit, a unit's cells row-major; sequence[i] = cells[permutation[i]]

Source: paper U, Sec. 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from videoar_kernels import RangeMask, unit_positions
from videoar_kernels.argument_types import whole

Grid = tuple[int, int, int]


class Unit(NamedTuple):
    """The cells of one unit: a box of a level, every step-th along an axis."""

    level: int
    t: range
    h: range
    w: range

    @property
    def shape(self) -> Grid:
        return len(self.t), len(self.h), len(self.w)


@dataclass(frozen=True)
class UnitLayout:
    """Units over one grid; `UnitScheme.on` makes it.

    Args:
        grid: (T, H, W) in tokens.
        levels: what the units partition, coarse to fine: the grid alone, or a pyramid whose last level it is.
        units: in the order of generation; together they hold every cell of every level once.
    """

    grid: Grid
    levels: tuple[Grid, ...]
    units: tuple[Unit, ...]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of every unit."""
        return tuple(prod(unit.shape) for unit in self.units)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First token of every unit in the sequence, then the sequence's length."""
        return tuple(accumulate(self.lengths, initial=0))

    @property
    def length(self) -> int:
        """Tokens of the sequence: T * H * W, and for a pyramid its coarser levels too."""
        return self.offsets[-1]

    def within(self, unit: int) -> slice:
        """A unit's tokens in the sequence."""
        return slice(self.offsets[unit], self.offsets[unit + 1])

    @cached_property
    def permutation(self) -> Tensor:
        """Cell of every token of the sequence, int64 (length,)."""
        with torch.inference_mode(False):  # kept for training too
            first = list(accumulate((prod(level) for level in self.levels), initial=0))
            return torch.cat([first[unit.level] + self._cells(unit) for unit in self.units])

    @cached_property
    def inverse(self) -> Tensor:
        """Place in the sequence of every cell, int64 (length,)."""
        with torch.inference_mode(False):
            return torch.argsort(self.permutation)

    @cached_property
    def unit_ids(self) -> Tensor:
        """Unit of every token of the sequence, int64 (length,)."""
        with torch.inference_mode(False):
            return torch.repeat_interleave(torch.arange(len(self.units)), torch.tensor(self.lengths))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Frame of the first token of every unit."""
        times = self.positions()[:, 0]
        return tuple(int(times[self.within(unit)].min()) for unit in range(len(self.units)))

    def positions(self, start: int = 0, *, device: torch.device | str | None = None) -> Tensor:
        """(t, h, w) of every token of the sequence, for RoPE.

        A token keeps its place in the grid whatever the order. A coarse level is spread over the grid: cell i of n
        along an axis of N stands at round(i * N / n), half to even, as paper S's relatives place coarse scales.

        Args:
            start: frame at which the clip begins, in a stream.
            device: where to put the result.

        Returns:
            int64 (length, 3).

        Raises:
            TypeError: a start that is no int.
        """
        start = whole("UnitLayout.positions", "start", start)
        kept = _positions(self, torch.device(device or "cpu"))
        if not start:
            return kept
        moved = kept.clone()
        moved[:, 0] += start
        return moved

    def mask(self, direction: str = "forward", *, window: int | None = None, sink: int = 0) -> RangeMask:
        """What every token sees in one pass; text enters through cross-attention and is not in it.

        Args:
            direction: "forward", "backward" or "full", as in `RangeMask.units`. "full" without a window is all to all.
            window: units before its own (after it, backward) that a unit sees; None: all.
            sink: first units (last, backward) that every unit sees besides.
        """
        return _mask(self.lengths, direction, window, sink)

    def teacher_forcing(self, *, window: int | None = None, sink: int = 0) -> RangeMask:
        """What is seen where a clean copy of the sequence stands before the noisy one; as `RangeMask`'s."""
        return _mask(self.lengths, "teacher_forcing", window, sink)

    def sees(self, unit: int, *, window: int | None = None, sink: int = 0) -> tuple[int, ...]:
        """The finished units that condition a unit while it is sampled: what the cache must hold, ascending.

        Raises:
            ValueError: no such unit, or a negative window or sink. TypeError: one of them is no int.
        """
        unit, sink = whole("UnitLayout.sees", "unit", unit), whole("UnitLayout.sees", "sink", sink)
        window = None if window is None else whole("UnitLayout.sees", "window", window)
        if not 0 <= unit < len(self.units):
            raise ValueError(f"UnitLayout.sees: expected a unit in 0..{len(self.units) - 1}, got {unit}")
        if sink < 0 or (window is not None and window < 0):
            raise ValueError(f"UnitLayout.sees: expected window and sink >= 0, got {window} and {sink}")
        oldest = 0 if window is None else max(unit - window, 0)
        return tuple(i for i in range(unit) if i < sink or i >= oldest)

    def repeated(self, clips: int) -> UnitLayout:
        """The same units clip after clip, as a stream has them: one layout over a grid that is `clips` times as long.

        Raises:
            ValueError: clips < 1, or a level whose frames do not divide the grid's, which would stand elsewhere.
            TypeError: clips is no int.
        """
        clips = whole("UnitLayout.repeated", "clips", clips)
        if clips < 1:
            raise ValueError(f"UnitLayout.repeated: expected at least one clip, got {clips}")
        if clips == 1:
            return self
        if any(self.grid[0] % level[0] for level in self.levels):
            raise ValueError(f"UnitLayout.repeated: expected levels that divide the grid's frames, got {self.levels}")
        grid, *levels = ((clips * frames, *size) for frames, *size in (self.grid, *self.levels))
        units = (
            unit._replace(t=range(unit.t.start + shift, unit.t.stop + shift, unit.t.step))
            for clip in range(clips)
            for unit in self.units
            for shift in (clip * self.levels[unit.level][0],)
        )
        return UnitLayout(grid, tuple(levels), tuple(units))

    def _cells(self, unit: Unit) -> Tensor:
        """Row-major cells of a unit within its level."""
        _, height, width = self.levels[unit.level]
        t, h, w = (torch.tensor(list(axis)) for axis in (unit.t, unit.h, unit.w))
        return ((t[:, None, None] * height + h[:, None]) * width + w).flatten()


@lru_cache(maxsize=256)
def _mask(lengths: Sequence[int], kind: str, window: int | None, sink: int) -> RangeMask:
    if kind == "teacher_forcing":
        return RangeMask.teacher_forcing(lengths, window=window, sink=sink)
    return RangeMask.units(lengths, window=window, sink=sink, direction=kind)


@lru_cache(maxsize=256)
def _positions(layout: UnitLayout, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        cells = []
        for level in layout.levels:
            step = torch.tensor([whole / size for whole, size in zip(layout.grid, level, strict=True)])
            cells.append((unit_positions(level) * step.double()).round().long())
        return torch.cat(cells)[layout.permutation].to(device)
