"""Observers that time the parts of a clip: by the clock on a CPU, by CUDA events on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch


class Span(NamedTuple):
    """When a part ran, in seconds from the start of its clip."""

    part: str
    frame: int | None
    scale: int | None
    begin: float
    seconds: float

    @property
    def end(self) -> float:
        return self.begin + self.seconds


class Clip(NamedTuple):
    """One clip: wall time until the last result was there, and its parts in the order they were given."""

    seconds: float
    spans: tuple[Span, ...]

    def part_seconds(self) -> dict[str, float]:
        """Seconds of every part, and as "between parts" what is none's, so that they add up to `seconds`.

        Where parts overlap on two streams, the last is negative by so much.
        """
        sums: dict[str, float] = {}
        for span in self.spans:
            sums[span.part] = sums.get(span.part, 0.0) + span.seconds
        return {**sums, "between parts": self.seconds - sum(sums.values())}

    @property
    def first_frame(self) -> float:
        """Seconds until the first frame was there: decoded, or drawn where nothing is decoded."""
        ends = {span.part: span.end for span in self.spans if span.frame == 0}
        return ends["decode"] if "decode" in ends else max(ends.values())


class Recorder(Protocol):
    """An observer that times one clip."""

    how: str

    def clip(self, run: Callable[[Recorder], object]) -> Clip: ...


class CpuRecorder:
    """The clock at the edges of every part: a fraction of a microsecond each."""

    how = "time.perf_counter at the edges of every part"

    def __init__(self) -> None:
        self._start, self._spans = 0.0, []

    @contextmanager
    def part(self, name: str, *, frame: int | None = None, scale: int | None = None) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._spans.append(Span(name, frame, scale, begin - self._start, time.perf_counter() - begin))

    def clip(self, run: Callable[[Recorder], object]) -> Clip:
        """Times run(self)."""
        self._spans = []
        self._start = time.perf_counter()
        run(self)
        return Clip(time.perf_counter() - self._start, tuple(self._spans))


class CudaRecorder:
    """Two CUDA events a part, read when the clip is done: nothing waits for the GPU in between.

    Not yet run on a GPU.
    """

    how = "CUDA events at the edges of every part, read after the clip; the clip itself by the host's clock"

    def __init__(self) -> None:
        self._marks: list[tuple] = []

    @contextmanager
    def part(self, name: str, *, frame: int | None = None, scale: int | None = None) -> Iterator[None]:
        begin = _event()
        yield
        self._marks.append((name, frame, scale, begin, _event()))

    def clip(self, run: Callable[[Recorder], object]) -> Clip:
        """Times run(self)."""
        self._marks = []
        torch.cuda.synchronize()
        start, origin = time.perf_counter(), _event()
        run(self)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        spans = (
            Span(name, frame, scale, origin.elapsed_time(begin) * 1e-3, begin.elapsed_time(end) * 1e-3)
            for name, frame, scale, begin, end in self._marks
        )
        return Clip(seconds, tuple(spans))


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def recorder_for(device: str) -> Recorder:
    """Returns the recorder of a device type."""
    return CudaRecorder() if device == "cuda" else CpuRecorder()
