"""The figures of a profile, as they are shown and stored. Seconds, bytes, FLOPs and their rates throughout."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from videoar.model_folder import write_json
from videoar.profiling.recorder import Clip, Span

SCHEMA = 1
BETWEEN = "between parts"


class Spread(NamedTuple):
    """Samples in short."""

    median: float
    p95: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        return cls(statistics.median(samples), percentile(samples, 0.95), min(samples), max(samples), len(samples))


def percentile(samples: Sequence[float], share: float) -> float:
    """The value below which `share` of the samples lie, interpolated between neighbours."""
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Part:
    """One part of a clip.

    Args:
        name: "text", "prefill", "transformer", "sampling", "step", "decode", in paper U also "noise" and "clean", or
            "between parts".
        in_median_clip: its seconds in the clip of median time; over all parts they add up to that clip.
        share: of that clip.
        seconds: over all clips.
        flops, bytes: that it needs; None where none are counted.
        flop_rate, byte_rate: those over the median seconds.
        floor: seconds that the machine's limits allow; a sum over steps.
        over_floor: median seconds over the floor.
    """

    name: str
    in_median_clip: float
    share: float
    seconds: Spread
    flops: float | None = None
    bytes: float | None = None
    flop_rate: float | None = None
    byte_rate: float | None = None
    floor: float | None = None
    over_floor: float | None = None


@dataclass(frozen=True)
class StepRow:
    """One (frame, scale), or in paper U (unit, pass): median seconds of its parts, and what the transformer needs.

    `group` is what a table puts together, `place` its name.
    """

    frame: int
    scale: int
    size: tuple[int, ...]
    group: str
    place: str
    tokens: int
    seen: int
    seconds: float
    parts: dict[str, float]
    flops: float
    bytes: float
    floor: float


@dataclass(frozen=True)
class Timed:
    """One way of making the clip.

    Args:
        name: "videoar", "without decoding" or "eager".
        computes_in: dtype of the transformer.
        seconds: of a clip.
        first_clip: seconds of the very first one, with everything that is made or compiled once.
        first_frame: median seconds until the first frame.
        frame_rate: pixel frames of all clips of the batch a second.
        token_rate: tokens drawn a second; with guidance twice as many are computed.
        unit: seconds of a unit, noise and all passes; None in paper S.
        parts, steps: where the time goes.
        samples: seconds of every clip.
        timeline: the spans of the clip of median time.
    """

    name: str
    computes_in: str
    seconds: Spread
    first_clip: float
    first_frame: float
    frame_rate: float
    token_rate: float
    unit: Spread | None
    parts: tuple[Part, ...]
    steps: tuple[StepRow, ...]
    samples: tuple[float, ...]
    timeline: tuple[Span, ...]


@dataclass(frozen=True)
class Rate:
    """A limit of the machine, timed in every round: FLOPs or bytes (read plus written) a second."""

    name: str
    unit: str
    rates: Spread


@dataclass(frozen=True)
class Gpu:
    """What NVML said while clips ran back to back.

    Args:
        absent: why there is nothing, or "".
        facts: driver, power limit, highest clocks.
        seconds, clips: of the window.
        busy, memory_busy: percent of the time, over the driver's last sampling period, in which a kernel ran, in
            which memory was read or written.
        watts, joules_per_frame, joules_per_clip, energy_from: what it took.
        sm_clock, memory_clock: mean MHz.
        temperature: mean degrees Celsius.
        held_back: share of the readings in which a reason lowered the clocks.
        readings: (seconds, watts, busy percent, SM MHz).
    """

    absent: str = ""
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    clips: int = 0
    busy: float | None = None
    memory_busy: float | None = None
    watts: float | None = None
    joules_per_frame: float | None = None
    joules_per_clip: float | None = None
    energy_from: str = ""
    sm_clock: float | None = None
    memory_clock: float | None = None
    temperature: float | None = None
    held_back: dict[str, float] = dataclasses.field(default_factory=dict)
    readings: tuple[tuple[float | None, ...], ...] = ()


@dataclass(frozen=True)
class Profile:
    """Everything `videoar profile` found.

    Args:
        machine, subject: what the figures depend on, name -> text.
        included: sentences that say what the figures include.
        rounds: how often each contender ran.
        ours: this library.
        bare: this library without decoding, where that is timed too.
        eager: eager PyTorch, if it was asked for.
        disagreement: relative difference of eager PyTorch's logits or flow.
        limits: of the machine.
        memory: name -> bytes, at the peak of a clip; where there are several contenders, of each.
        gpu: what NVML said; None on a CPU.
    """

    machine: dict[str, str]
    subject: dict[str, str]
    included: tuple[str, ...]
    rounds: int
    ours: Timed
    bare: Timed | None
    eager: Timed | None
    disagreement: float | None
    limits: tuple[Rate, ...]
    memory: dict[str, int]
    gpu: Gpu | None

    @property
    def speedup(self) -> float | None:
        """Eager's median time over ours."""
        return None if self.eager is None else self.eager.seconds.median / self.ours.seconds.median

    def to_json(self) -> dict:
        """Plain values; named tuples become objects too."""
        return {"schema": SCHEMA, **_plain(self), "speedup": self.speedup}

    def save(self, path: Path) -> None:
        """Writes `to_json()`, whole or not at all."""
        write_json(path, self.to_json())

    def __str__(self) -> str:
        return json.dumps(self.to_json())


def median_clip(clips: Sequence[Clip]) -> Clip:
    """The clip in the middle: of an even number, the quicker of the two."""
    return sorted(clips, key=lambda clip: clip.seconds)[(len(clips) - 1) // 2]


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if hasattr(value, "_asdict"):
        return {key: _plain(entry) for key, entry in value._asdict().items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value
