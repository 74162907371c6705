"""From the spans of many clips to figures of parts and steps, beside the work they need."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from videoar.profiling.contender import Contender, Subject
from videoar.profiling.recorder import Clip
from videoar.profiling.result import BETWEEN, Part, Spread, StepRow, Timed, median_clip
from videoar.profiling.work import Work

ORDER = ("text", "prefill", "noise", "transformer", "clean", "sampling", "step", "decode")


class Attribution:
    """What every part of a subject's clip needs, and what the machine could do.

    Args:
        subject: what ran.
        flop_rate, byte_rate: the machine's limits.
    """

    def __init__(self, subject: Subject, flop_rate: float, byte_rate: float) -> None:
        self.subject, self.rates = subject, (flop_rate, byte_rate)
        self.work = subject.work()

    def timed(self, contender: Contender) -> Timed:
        """The figures of one way of making the clip."""
        subject, clips = self.subject, contender.clips
        samples, middle = [clip.seconds for clip in clips], median_clip(clips)
        seconds = Spread.of(samples)
        return Timed(
            name=contender.name,
            computes_in=contender.computes_in,
            seconds=seconds,
            first_clip=contender.first,
            first_frame=statistics.median(clip.first_frame for clip in clips),
            frame_rate=subject.shape.frames * subject.options.batch / seconds.median,
            token_rate=self.work.tokens * subject.options.batch / seconds.median,
            unit=self.unit(clips),
            parts=self.parts(clips, middle),
            steps=self.step_rows(clips),
            samples=tuple(samples),
            timeline=middle.spans,
        )

    def unit(self, clips: Sequence[Clip]) -> Spread | None:
        """Seconds of a unit, over all units of all clips."""
        found: dict[tuple[int, int], float] = {}
        for number, clip in enumerate(clips):
            for span in clip.spans:
                if span.part in self.work.unit_parts:
                    found[number, span.frame] = found.get((number, span.frame), 0.0) + span.seconds
        return Spread.of(list(found.values())) if found else None

    def parts(self, clips: Sequence[Clip], middle: Clip) -> tuple[Part, ...]:
        sums = [clip.part_seconds() for clip in clips]
        names = sorted(sums[0], key=lambda name: (name == BETWEEN, ORDER.index(name) if name in ORDER else len(ORDER)))
        chosen = middle.part_seconds()
        return tuple(self._part(name, chosen[name], middle.seconds, [found[name] for found in sums]) for name in names)

    def _part(self, name: str, chosen: float, clip: float, samples: list[float]) -> Part:
        seconds, works = Spread.of(samples), self.work.parts.get(name)
        if not works:
            return Part(name, chosen, chosen / clip, seconds)
        whole = sum(works, Work())
        floor = sum(work.floor(*self.rates) for work in works)
        return Part(
            name,
            chosen,
            chosen / clip,
            seconds,
            whole.flops,
            whole.bytes,
            whole.flops / seconds.median,
            whole.bytes / seconds.median,
            floor,
            seconds.median / floor,
        )

    def step_rows(self, clips: Sequence[Clip]) -> tuple[StepRow, ...]:
        found: dict[tuple[int, int], dict[str, list[float]]] = {}
        for clip in clips:
            one: dict[tuple[int, int], dict[str, float]] = {}
            for span in clip.spans:
                if span.scale is not None:
                    parts = one.setdefault((span.frame, span.scale), {})
                    parts[span.part] = parts.get(span.part, 0.0) + span.seconds
            for place, parts in one.items():
                for part, seconds in parts.items():
                    found.setdefault(place, {}).setdefault(part, []).append(seconds)
        rows = []
        for step in self.work.steps:
            parts = {part: statistics.median(s) for part, s in found.get((step.frame, step.scale), {}).items()}
            rows.append(
                StepRow(
                    frame=step.frame,
                    scale=step.scale,
                    size=step.size,
                    group=step.group,
                    place=step.place,
                    tokens=step.tokens,
                    seen=step.seen,
                    seconds=sum(parts.values()),
                    parts=parts,
                    flops=step.work.flops,
                    bytes=step.work.bytes,
                    floor=step.work.floor(*self.rates),
                )
            )
        return tuple(rows)
