"""Latent frames out of units, each as soon as no unit to come can change it.

A frame unit completes its frame, the last cube of a slab the slab, the finest level of a pyramid the clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from videoar.next_unit.denoising import SampledUnit
from videoar.next_unit.latents import from_cells
from videoar.next_unit.layout import Grid, UnitLayout


@lru_cache(maxsize=256)
def frames_after(layout: UnitLayout) -> tuple[int, ...]:
    """How many of a clip's first frames, in tokens, are complete after each of its units."""
    finest = len(layout.levels) - 1
    last = [0] * layout.grid[0]
    for number, unit in enumerate(layout.units):
        if unit.level == finest:
            for t in unit.t:
                last[t] = number
    counts = []
    for number in range(len(layout.units)):
        late = [t for t, unit in enumerate(last) if unit > number]
        counts.append(late[0] if late else layout.grid[0])
    return tuple(counts)


def ends_frames(layout: UnitLayout) -> tuple[bool, ...]:
    """Whether after each unit nothing is begun that is not complete: where a stream may take another prompt."""
    height, width = layout.grid[1:]
    last = len(layout.units) - 1
    return tuple(
        unit == last or layout.offsets[unit + 1] == count * height * width
        for unit, count in enumerate(frames_after(layout))
    )


def whole_frames(layout: UnitLayout) -> tuple[int, ...]:
    """After how many of a clip's frames, in tokens, nothing is half made; in order, the clip's end last."""
    ready = zip(ends_frames(layout), frames_after(layout), strict=True)
    return tuple(sorted({count for ended, count in ready if ended}))


def latent_frames(units: Iterable[SampledUnit], layout: UnitLayout, patch: Grid) -> Iterator[Tensor]:
    """Yields latents (B, C, n, H', W') in the order of time, n frames as soon as they are complete.

    Args:
        units: of one clip after another, in the order of generation.
        layout: the units of a clip.
        patch: (p_t, p_h, p_w).
    """
    ready, finest = frames_after(layout), len(layout.levels) - 1
    cells, done = None, 0
    for sampled in units:
        if layout.units[sampled.unit].level == finest:
            if cells is None:
                cells = sampled.tokens.new_zeros(len(sampled.tokens), prod(layout.grid), sampled.tokens.shape[-1])
            cells[:, _places(layout, cells.device)[layout.within(sampled.unit)]] = sampled.tokens
        count = ready[sampled.unit]
        if count > done:
            yield from_cells(cells.unflatten(1, layout.grid)[:, done:count], patch)
            done = count
        if count == layout.grid[0]:
            cells, done = None, 0


@lru_cache(maxsize=64)
def _places(layout: UnitLayout, device: torch.device) -> Tensor:
    """Cell of the grid of every token of its finest level; kept, for copying it would wait for a GPU."""
    with torch.inference_mode(False):
        return (layout.permutation - sum(map(prod, layout.levels[:-1]))).to(device)
