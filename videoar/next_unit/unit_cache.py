"""The key/value cache of a stream of units, with its window and sink counted in units."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from math import gcd

import torch

from videoar.next_unit.config import BackboneConfig
from videoar.next_unit.layout import UnitLayout
from videoar_kernels import KVCache
from videoar_kernels.argument_types import whole

MOST_PLACES = 128  # at which a stream's units lie in the ring: a CUDA graph is captured for each


class UnitCache:
    """Keys and values of the units that later ones may see, in memory that does not grow.

    A unit is stepped as often as it needs, each time replacing its pending keys, and committed once it is clean.

    Args:
        config: the backbone's shape.
        layout: the units of a clip; a stream repeats them clip after clip.
        batch: samples.
        window: units before its own that a unit sees; None: all, for `clips` clips.
        sink: first units of the stream that every unit sees besides.
        clips: clips to make room for where nothing is dropped.
        relative: close up the time of dropped units, so that positions stay small in a stream without end.
        dtype: of keys and values.
        device: where they lie.

    Raises:
        ValueError: a negative window or sink, or fewer than one clip. TypeError: one of them is no int.

    Source: paper U, Sec. 3.4; rewriting until clean as in Self-Forcing.
    """

    def __init__(
        self,
        config: BackboneConfig,
        layout: UnitLayout,
        batch: int,
        *,
        window: int | None = None,
        sink: int = 0,
        clips: int = 1,
        relative: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        sink, clips = whole("UnitCache", "sink", sink), whole("UnitCache", "clips", clips)
        window = None if window is None else whole("UnitCache", "window", window)
        if sink < 0 or (window is not None and window < 0) or clips < 1:
            raise ValueError(
                f"UnitCache: expected window and sink >= 0 and clips >= 1, got {window}, {sink} and {clips}"
            )
        self.window, self.sink = window, sink
        self.committed = 0  # units, since it was empty
        pinned = sum(islice(cycle(layout.lengths), sink))
        if window is None:
            capacity = max(clips * layout.length, pinned)
        else:
            # The unit being written and the window before it, wherever in the clip that is.
            spans = (islice(cycle(layout.lengths), first, first + window + 1) for first in range(len(layout.units)))
            capacity = pinned + ring_slots(max(map(sum, spans)), layout.lengths)
        self.kv = KVCache(
            config.depth,
            batch,
            config.heads,
            capacity,
            config.head_dim,
            sink=pinned,
            relative=relative,
            dtype=dtype,
            device=device,
        )

    def commit(self) -> None:
        """Keeps the pending unit, and drops the oldest one if the window is full."""
        self.kv.commit()
        self.committed += 1
        if self.window is not None:
            self.kv.evict(max(self.kv.units - self.window, 0))

    def mark_pending(self, tokens: int) -> None:
        """Counts a unit as pending that a CUDA graph wrote; see `KVCache.mark_pending`."""
        self.kv.mark_pending(tokens)

    def rollback(self) -> None:
        """Forgets the pending unit."""
        self.kv.rollback()

    def reset(self) -> None:
        """Forgets everything; the memory stays."""
        self.committed = 0
        self.kv.reset()


def ring_slots(least: int, lengths: Sequence[int]) -> int:
    """Slots of a ring for a stream of clips of such units: few more than needed, so that units lie at few places.

    A clip moves the ring on by its length L, so places repeat after R / gcd(L, R) clips.

    Args:
        least: slots needed.
        lengths: tokens of the units of a clip.
    """
    length = sum(lengths)
    rings = [-(-least // part) * part for part in range(1, length + 1) if length % part == 0]
    few = [ring for ring in rings if len(lengths) * ring // gcd(length, ring) <= MOST_PLACES]
    return min(few, default=max(rings))
