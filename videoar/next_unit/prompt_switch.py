"""Another prompt in the middle of a stream: what of the past is computed anew, where, and when.

Keys and values in the cache were computed under the old prompt. The clean units that are still seen go through the
model again under the new one, at the positions that they have once the time of dropped units is closed up.
Source: LongLive's recache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from videoar.next_unit.denoising import SampledUnit
from videoar.next_unit.frames import ends_frames, frames_after
from videoar.next_unit.layout import UnitLayout
from videoar.text import Prompt


class CleanUnits:
    """The finished units of a stream that a switch needs: the sink, and the last ones.

    Args:
        layout: the units of a clip.
        sink: first units of the stream that every unit sees.
        last: how many others are kept; None: all.
        relative: whether the cache closes up the time of dropped units.
    """

    def __init__(self, layout: UnitLayout, sink: int, last: int | None, relative: bool) -> None:
        self._layout, self._sink, self._relative = layout, sink, relative
        self._pinned: list[Tensor] = []
        self._last: deque[Tensor] = deque(maxlen=last)
        self._count = 0  # units so far
        self._closed = 0  # time closed up when the cache was last written anew

    def append(self, tokens: Tensor) -> None:
        """Takes the next unit of the stream."""
        (self._pinned if self._count < self._sink else self._last).append(tokens)
        self._count += 1

    def again(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yields (clip, unit, tokens) of what an empty cache must be given, whose time begins anew at `start`."""
        oldest = self._count - len(self._last)
        dropped = self._relative and oldest > self._sink
        self._closed = self._time(oldest) - self._time(self._sink) if dropped else 0
        for number, tokens in (*enumerate(self._pinned), *enumerate(self._last, start=oldest)):
            yield *divmod(number, len(self._layout.units)), tokens

    def start(self, clip: int, unit: int) -> int:
        """Frame at which a unit's clip begins, as the cache is told it."""
        pinned = clip * len(self._layout.units) + unit < self._sink
        return clip * self._layout.grid[0] - (0 if pinned else self._closed)

    def _time(self, number: int) -> int:
        """Frame of a unit's first token, counted from the beginning of the stream."""
        clip, unit = divmod(number, len(self._layout.units))
        return clip * self._layout.grid[0] + self._layout.starts[unit]


def with_switches(
    units: Iterable[SampledUnit],
    layout: UnitLayout,
    switches: Mapping[float, Prompt | Sequence[Prompt]],
    *,
    seconds: Callable[[int], float],
    switch: Callable[[Prompt | Sequence[Prompt]], None],
) -> Iterator[SampledUnit]:
    """Passes units on, and changes the prompt where one is due and no frame is half made.

    Args:
        units: of a stream.
        layout: the units of a clip.
        switches: prompts by the time from which they hold; read after every unit, so more may be added meanwhile.
        seconds: length of the stream after so many of its frames, in tokens.
        switch: takes the prompts that are due.
    """
    ends, counts, latest = ends_frames(layout), frames_after(layout), 0.0
    for sampled in units:
        yield sampled
        if ends[sampled.unit]:
            now = seconds(sampled.clip * layout.grid[0] + counts[sampled.unit])
            due = [time for time in list(switches) if latest < time <= now]
            if due:
                latest = max(due)
                switch(switches[latest])
