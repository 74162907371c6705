"""The prediction units of paper U: what is generated in one step, and in which order.

    frame()               one frame
    key_detail(k)         every k-th frame: the key frames 0, k, 2k, ..., then 1, k + 1, ..., and so on
    cube(a, b, c)         a * b * c boxes, the grid cut a times in time, b in height and c in width
    multiscale(scales)    the whole clip, resized from coarse to fine; the last scale is the clip itself

A scheme knows no size; `scheme.on((T, H, W))` lays it over a grid. Source: paper U, Sec. 3.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from typing import Literal

from videoar.next_unit.layout import Grid, Unit, UnitLayout
from videoar_kernels.argument_types import whole


@dataclass(frozen=True)
class UnitScheme:
    """A way of cutting any latent grid into units; made by one of the functions below.

    Args:
        kind: which of the four.
        sizes: its numbers: (k,) of key_detail, (a, b, c) of cube, the scales of multiscale as (h, w) or (t, h, w).
    """

    kind: Literal["frame", "key_detail", "cube", "multiscale"]
    sizes: tuple = ()

    def on(self, grid: Grid) -> UnitLayout:
        """Lays the units over a grid; where sizes do not divide, units differ in size and none is empty.

        Args:
            grid: (T, H, W) in tokens.

        Raises:
            ValueError: an empty grid, or a scale larger than it. TypeError: a size that is no int.
        """
        return _layout(self, tuple(whole("UnitScheme.on", "grid", size) for size in grid))

    def __str__(self) -> str:
        if self.kind == "frame":
            return "frame"
        if self.kind == "multiscale":
            return f"multiscale({', '.join('x'.join(map(str, scale)) for scale in self.sizes)})"
        return f"{self.kind}({', '.join(map(str, self.sizes))})"


def frame() -> UnitScheme:
    """Frame after frame: T steps."""
    return UnitScheme("frame")


def key_detail(k: int) -> UnitScheme:
    """Key frames at a distance of k, then the frames between them, one further from their key each step: k steps.

    Raises:
        ValueError: k < 1. TypeError: it is no int.
    """
    k = whole("key_detail", "k", k)
    if k < 1:
        raise ValueError(f"key_detail: expected k >= 1, got {k}")
    return UnitScheme("key_detail", (k,))


def cube(a: int = 2, b: int = 2, c: int = 2) -> UnitScheme:
    """Boxes of about T/a x H/b x W/c, time first, then rows, then columns: a * b * c steps (paper U, Table 3).

    Raises:
        ValueError: a number below 1. TypeError: one that is no int.
    """
    a, b, c = (whole("cube", name, size) for name, size in zip("abc", (a, b, c), strict=True))
    if min(a, b, c) < 1:
        raise ValueError(f"cube: expected at least one cube along every axis, got {a} x {b} x {c}")
    return UnitScheme("cube", (a, b, c))


def multiscale(scales: Sequence[Sequence[int]]) -> UnitScheme:
    """The clip resized to scale after scale: as many steps as scales.

    Args:
        scales: (h, w), with all frames, or (t, h, w), coarse to fine, in tokens. The grid itself is the last scale, and
            is added where the list does not end with it.

    Raises:
        ValueError: no scale, a size below 1, or an axis that shrinks from one scale to the next. TypeError: a scale
            that is no sequence, or a size that is no int.
    """
    if any(not isinstance(scale, Iterable) or isinstance(scale, str) for scale in scales):
        raise TypeError(f"multiscale: expected scales as (h, w) or (t, h, w), got {list(scales)}")
    sizes = tuple(tuple(whole("multiscale", "sizes", size) for size in scale) for scale in scales)
    if not sizes or len({len(scale) for scale in sizes}) > 1 or len(sizes[0]) not in (2, 3):
        raise ValueError(f"multiscale: expected scales that are all (h, w) or all (t, h, w), got {list(scales)}")
    if min(min(scale) for scale in sizes) < 1:
        raise ValueError(f"multiscale: expected sizes of at least 1, got {list(scales)}")
    for one, other in pairwise(sizes):
        if one == other or any(a > b for a, b in zip(one, other, strict=True)):
            raise ValueError(f"multiscale: expected scales from coarse to fine, got {one} before {other}")
    return UnitScheme("multiscale", sizes)


def parse_units(text: str) -> UnitScheme:
    """The scheme that `str(scheme)` names: "frame", "key_detail(4)", "cube(2, 2, 2)", "multiscale(1x1, 2x2)".

    Raises:
        ValueError: another name, or numbers that do not fit.
    """
    found = re.fullmatch(r"\s*(\w+)\s*(?:\(([\dx,\s]*)\))?\s*", text) if isinstance(text, str) else None
    kind, inside = (found[1], found[2] or "") if found else ("", "")
    numbers = [part.strip() for part in inside.split(",") if part.strip()]
    try:
        if kind == "frame" and not numbers:
            return frame()
        if kind == "key_detail" and len(numbers) == 1:
            return key_detail(int(numbers[0]))
        if kind == "cube" and len(numbers) in (0, 3):
            return cube(*map(int, numbers))
        if kind == "multiscale" and numbers:
            return multiscale([[int(size) for size in number.split("x")] for number in numbers])
    except ValueError as error:
        raise ValueError(f"parse_units: {text!r}: {error}") from None
    raise ValueError(
        f'parse_units: expected "frame", "key_detail(k)", "cube(a, b, c)" or "multiscale(hxw, ...)", got {text!r}'
    )


@lru_cache(maxsize=256)
def _layout(scheme: UnitScheme, grid: Grid) -> UnitLayout:
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"UnitScheme.on: expected a grid (T, H, W) of at least 1 x 1 x 1, got {grid}")
    levels, units = _CUTS[scheme.kind](grid, scheme.sizes)
    return UnitLayout(grid, tuple(levels), tuple(units))


def _frames(grid: Grid, _: tuple) -> tuple[list[Grid], list[Unit]]:
    frames, height, width = grid
    return [grid], [Unit(0, range(t, t + 1), range(height), range(width)) for t in range(frames)]


def _key_details(grid: Grid, sizes: tuple) -> tuple[list[Grid], list[Unit]]:
    frames, height, width = grid
    (k,) = sizes
    return [grid], [Unit(0, range(t, frames, k), range(height), range(width)) for t in range(min(k, frames))]


def _cubes(grid: Grid, sizes: tuple) -> tuple[list[Grid], list[Unit]]:
    return [grid], [Unit(0, *spans) for spans in product(*map(_cut, grid, sizes))]


def _cut(size: int, parts: int) -> list[range]:
    """About equal parts, the longer ones first; never more parts than there are cells."""
    parts = min(parts, size)
    short, longer = divmod(size, parts)
    edges = [i * short + min(i, longer) for i in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(edges)]


def _scales(grid: Grid, sizes: tuple) -> tuple[list[Grid], list[Unit]]:
    levels = [scale if len(scale) == 3 else (grid[0], *scale) for scale in sizes]
    if any(size > whole for level in levels for size, whole in zip(level, grid, strict=True)):
        raise ValueError(f"multiscale: expected scales within the grid {grid}, got {sizes}")
    levels += [] if levels[-1] == grid else [grid]
    return levels, [Unit(number, *map(range, level)) for number, level in enumerate(levels)]


_CUTS = {"frame": _frames, "key_detail": _key_details, "cube": _cubes, "multiscale": _scales}
