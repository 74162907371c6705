"""Keys and values of finished units as a value that never changes: the cache of training.

A pass returns the keys and values that it read and made; `commit` gives a new cache that holds them. Whatever was
computed with a cache can be computed again with it, so recomputing blocks in the backward pass is safe, which it is not
where a cache is written in place. Every finished unit is held; a window and a sink only decide what is read. No
gradient flows through the cache.

Source: paper U, Sec. 3.3; the rollouts of Self-Forcing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from videoar.next_unit.attention import Attend, Attention, TextKeys
from videoar.next_unit.layout import UnitLayout
from videoar.next_unit.transformer import NextUnitTransformer
from videoar_kernels import RangeMask, range_attention


class UnitKeys(NamedTuple):
    """Keys, rotated, and values (B, H, n, D) of every layer, without gradient."""

    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]


@dataclass(frozen=True)
class FunctionalCache:
    """The first `units` units of a clip, clean.

    Args:
        layout: the units of the clip.
        units: how many are held.
        keys: theirs; None while there are none.
        window: units before its own that a unit sees; None: all.
        sink: first units that every unit sees besides.
    """

    layout: UnitLayout
    units: int = 0
    keys: UnitKeys | None = None
    window: int | None = None
    sink: int = 0

    def commit(self, keys: UnitKeys) -> FunctionalCache:
        """The cache that holds the next unit too.

        Args:
            keys: of a pass after this cache in which that unit, clean, came first.

        Raises:
            ValueError: no unit is left, or keys of fewer tokens.
        """
        end = self.layout.offsets[self.units + 1] if self.units < len(self.layout.units) else None
        if end is None or keys.k[0].shape[2] < end:
            raise ValueError(
                f"FunctionalCache.commit: expected keys of {self.layout.offsets[1:]} tokens after {self.units} units, "
                f"got {keys.k[0].shape[2]}"
            )
        first = UnitKeys(*(tuple(x[:, :, :end] for x in part) for part in keys))
        return replace(self, units=self.units + 1, keys=first)

    def mask(self, units: tuple[int, ...], alone: bool) -> RangeMask | None:
        """Who sees what where `units` are run after the units held; see `run_units`."""
        return _mask(self.layout, self.units, self.window, self.sink, units, alone)


class UnitPass(NamedTuple):
    """The flow (B, n, patch_width) of the units of a pass; the keys and values of the cache, and then theirs."""

    flow: Tensor
    keys: UnitKeys


def run_units(
    model: NextUnitTransformer,
    tokens: Tensor,
    timesteps: Tensor,
    text: Tensor | TextKeys,
    cache: FunctionalCache,
    units: Sequence[int],
    *,
    alone: bool = False,
) -> UnitPass:
    """One pass over some units of a clip, which see the finished units that the cache's window and sink let them see.

    Args:
        model: the backbone.
        tokens: the patches of these units (B, n, patch_width), unit after unit.
        timesteps: (B, 1), or (B, len(units)) for a noise level each; 0 to 1000.
        text: features (B, n, text_width), or what `encode_text` made of them.
        cache: finished units; unchanged by this.
        units: ascending.
        alone: units of this pass don't see one another. Otherwise they see those before them, as if finished: the
            last finished unit and the next one can share a pass.

    Raises:
        ValueError: a shape that does not fit, or a unit that would see one which is neither held nor here.
    """
    units = tuple(units)
    reader = _Reader(cache, units, alone, tokens.device)
    flow = model.run_units(tokens, timesteps, text, cache.layout, units, reader)
    return UnitPass(flow, UnitKeys(tuple(reader.k.values()), tuple(reader.v.values())))


class _Reader:
    """Attends to the cache and the pass itself, and remembers the keys and values of both, layer after layer.

    A block that is run again writes what it wrote before.
    """

    def __init__(self, cache: FunctionalCache, units: tuple[int, ...], alone: bool, device: torch.device) -> None:
        positions = cache.layout.positions(device=device)
        self.positions = torch.cat([positions[cache.layout.within(unit)] for unit in units])
        self.keys, self.mask = cache.keys, cache.mask(units, alone)
        self.k: dict[int, Tensor] = {}
        self.v: dict[int, Tensor] = {}

    def layer(self, index: int) -> Attend:
        def attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k = attention.rotated(q, k, self.positions)
            v = attention.split(v)
            if self.keys is not None:
                k = torch.cat([self.keys.k[index], k], dim=2)
                v = torch.cat([self.keys.v[index], v], dim=2)
            self.k[index], self.v[index] = k.detach(), v.detach()
            return range_attention(q, k, v, self.mask)

        return attend


@lru_cache(maxsize=1024)
def _mask(
    layout: UnitLayout, held: int, window: int | None, sink: int, units: tuple[int, ...], alone: bool
) -> RangeMask | None:
    """Keys are the held units and then the units of the pass; None where all see all."""
    first = layout.offsets[held]
    lengths = [layout.lengths[unit] for unit in units]
    ends = [*accumulate(lengths, initial=0)]
    own = {unit: (first + begin, first + end) for unit, (begin, end) in zip(units, pairwise(ends), strict=True)}
    reach = {unit: layout.offsets[unit : unit + 2] for unit in range(held)} | ({} if alone else own)
    seen = []
    for unit in units:
        visible = layout.sees(unit, window=window, sink=sink)
        if missing := [other for other in visible if other not in reach]:
            raise ValueError(f"run_units: expected units {missing}, which unit {unit} sees, in the cache or the pass")
        seen.append([*(reach[other] for other in visible), own[unit]])
    mask = RangeMask.from_ranges(ends[-1], first + ends[-1], list(pairwise(ends)), seen)
    return None if mask.density == 1 else mask
