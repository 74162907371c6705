"""Where a KV cache's tokens lie: host-side bookkeeping of a pinned sink and a ring, without any tensor.

Token i since the reset has slot i if i < sink, else sink + (i - sink) mod (capacity - sink). The tokens held in the
ring are always consecutive, so they fill at most two slot ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


def runs(slots: list[int]) -> list[tuple[slice, slice]]:
    """Returns, for each run of consecutive slots, where it lies in the list and which slots it holds.

    On a GPU a slice is only an address, while a list of slots is copied there, which waits for it.
    """
    found, first = [], 0
    for i in range(1, len(slots) + 1):
        if i == len(slots) or slots[i] != slots[i - 1] + 1:
            found.append((slice(first, i), slice(slots[first], slots[i - 1] + 1)))
            first = i
    return found


def moves(source: list[int], target: list[int]) -> list[int]:
    """Returns slot, new slot and length of each stretch of tokens that lies together in both places, the last first.

    Tokens only move towards newer ones, so that in this order none is overwritten before it has moved.
    """
    found, first = [], 0
    for i in range(1, len(source) + 1):
        if i == len(source) or source[i] != source[i - 1] + 1 or target[i] != target[i - 1] + 1:
            found = [source[first], target[first], i - first, *found]
            first = i
    return found


@dataclass(eq=False)
class Unit:
    """A closed or open unit of which the ring holds tokens."""

    number: int  # counted since the reset
    start: int  # time of its first token
    length: int = 0  # its tokens in the ring
    pinned: bool = False  # whether some of its tokens lie in the sink
    next_start: int | None = None  # time of the first token of the unit after it


class Dropped(NamedTuple):
    """What an eviction asks of the buffers.

    Attributes:
        tokens: How many tokens went.
        source: Slots of tokens to move, and
        target: where to.
        shifts: (slots, gap): times to move down by the span that is gone, before any move.
    """

    tokens: int
    source: list[int]
    target: list[int]
    shifts: list[tuple[list[int], int]]


class RingCursors:
    """Cursors of a cache with `capacity` slots, the first `sink` of them pinned."""

    def __init__(self, capacity: int, sink: int) -> None:
        self.capacity, self.sink = capacity, sink
        self.reset()

    def reset(self) -> None:
        """Forgets every token."""
        self.total = 0  # tokens committed since the reset
        self.in_ring = 0  # committed tokens in the ring
        self.units: list[Unit] = []  # closed units with tokens in the ring, oldest first
        self._open: Unit | None = None
        self._begun = 0  # units begun since the reset
        self._gap = 0  # time spanned by dropped units
        self._dropped_last: int | None = None  # start of a dropped unit that no unit has followed yet

    @property
    def length(self) -> int:
        """Committed tokens held."""
        return min(self.total, self.sink) + self.in_ring

    def pinned(self, length: int) -> int:
        """Returns how many of the next `length` tokens fall into the sink."""
        return min(max(self.sink - self.total, 0), length)

    @property
    def next_slot(self) -> int:
        """The slot of the next token."""
        return self.total if self.total < self.sink else self._ring_slots(self.in_ring, 1)[0]

    def next_slots(self, length: int) -> list[int]:
        """Returns the slots of the next `length` tokens."""
        pinned = self.pinned(length)
        return [*range(self.total, self.total + pinned), *self._ring_slots(self.in_ring, length - pinned)]

    def ranges(self, pending: int) -> tuple[tuple[int, int], ...]:
        """Returns the slot ranges of the held tokens and of the next `pending` ones, ascending and disjoint."""
        pinned = self.pinned(pending)
        ranges = [(0, min(self.total + pending, self.sink))]
        count = self.in_ring + pending - pinned
        if count:
            first = self._ring_slots(0, 1)[0]
            wrapped = max(first + count - self.capacity, 0)
            ranges += [(self.sink, self.sink + wrapped), (first, first + count - wrapped)]
        merged: list[tuple[int, int]] = []
        for begin, end in ranges:
            if merged and merged[-1][1] == begin:
                begin = merged.pop()[0]
            if begin < end:
                merged.append((begin, end))
        return tuple(merged)

    def commit(self, length: int, start: int, close: bool) -> None:
        """Keeps the next `length` tokens; `start` is the time of the first, `close` ends the unit."""
        if self._open is None:
            if self.units and self.units[-1].next_start is None:
                self.units[-1].next_start = start
            self._gap, self._dropped_last = self.gap(start), None
            self._open = Unit(self._begun, start)
            self._begun += 1
        pinned = self.pinned(length)
        self._open.pinned |= pinned > 0
        self._open.length += length - pinned
        self.in_ring += length - pinned
        self.total += length
        if close:
            if self._open.length:
                self.units.append(self._open)
            self._open = None

    def gap(self, start: int) -> int:
        """Returns the time to take off a block that comes next and begins at time `start`."""
        return self._gap + (start - self._dropped_last if self._dropped_last is not None else 0)

    def beyond(self, window: int) -> int:
        """Returns how many of the oldest closed units must go so that at most `window` of their tokens stay."""
        held, count = self.in_ring - (self._open.length if self._open else 0), 0
        while held > window:
            held -= self.units[count].length
            count += 1
        return count

    def drop(self, count: int, every: int | None = None) -> Dropped:
        """Drops the `count` oldest closed units, except those whose number is a multiple of `every`.

        What stays of them moves next to the units that follow.
        """
        while count and every is not None and self.units[count - 1].number % every == 0:
            count -= 1  # only units older than a dropped one have to move
        offset, gap = 0, 0  # the ring offset, counted from the oldest token; the time that is gone before it
        kept, stay, shifts = [], [], []
        for unit in self.units[:count]:
            if every is not None and unit.number % every == 0:
                stay.append(unit)
                kept += range(offset, offset + unit.length)
                if gap:
                    shifts.append((self._ring_slots(offset, unit.length), gap))
            elif not unit.pinned and unit.next_start is None:
                self._dropped_last = unit.start
            elif not unit.pinned:
                gap += unit.next_start - unit.start
            offset += unit.length
        if gap and offset < self.in_ring:
            shifts.append((self._ring_slots(offset, self.in_ring - offset), gap))
        slots = self._ring_slots(0, offset) if kept else []
        tokens = offset - len(kept)
        self.units = stay + self.units[count:]
        self._gap += gap
        self.in_ring -= tokens
        return Dropped(tokens, [slots[i] for i in kept], slots[tokens:], shifts)

    def _ring_slots(self, offset: int, count: int) -> list[int]:
        """Returns the slots of `count` ring tokens from `offset` on, counted from the oldest held one."""
        first = max(self.total - self.sink, 0) - self.in_ring + offset
        return [self.sink + i % (self.capacity - self.sink) for i in range(first, first + count)]
