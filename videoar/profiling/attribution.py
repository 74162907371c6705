"""From the spans of many clips to figures of parts and steps, beside the work they need."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from videoar.profiling.recorder import Clip
from videoar.profiling.result import BETWEEN, Part, Spread, StepRow, Timed, median_clip
from videoar.profiling.subject import Subject
from videoar.profiling.work import Step, TransformerWork, Work, decoder_work

ORDER = ("text", "prefill", "transformer", "sampling", "step", "decode")


class Attribution:
    """What every part of a subject's clip needs, and what the machine could do.

    Args:
        subject: what ran.
        weight_bytes: of one number of the transformer's weights and cache.
        flop_rate, byte_rate: the machine's limits.
    """

    def __init__(self, subject: Subject, weight_bytes: int, flop_rate: float, byte_rate: float) -> None:
        self.subject, self.rates = subject, (flop_rate, byte_rate)
        rows = subject.options.batch * (1 if subject.guidance.is_one else 2)
        transformer = TransformerWork(subject.config, rows, weight_bytes=weight_bytes, cache_bytes=weight_bytes)
        self.steps: list[Step] = transformer.steps(subject.latent_frames)
        stepwise = [step.work for step in self.steps]
        # Where a step is one CUDA graph it is not divided further.
        self.works: dict[str, list[Work]] = {
            "prefill": [transformer.text()],
            "transformer": stepwise,
            "step": stepwise,
        }
        if subject.options.decode:
            config, batch = subject.pipeline.tokenizer.config, subject.options.batch
            self.works["decode"] = decoder_work(config, subject.latent_frames, batch, element_bytes=4)

    def timed(self, name: str, computes_in: str, first_clip: float, clips: Sequence[Clip]) -> Timed:
        """The figures of one way of making the clip."""
        subject = self.subject
        samples, middle = [clip.seconds for clip in clips], median_clip(clips)
        seconds = Spread.of(samples)
        tokens = sum(step.tokens for step in self.steps) * subject.options.batch
        return Timed(
            name=name,
            computes_in=computes_in,
            seconds=seconds,
            first_clip=first_clip,
            first_frame=statistics.median(clip.first_frame for clip in clips),
            frame_rate=subject.shape.frames * subject.options.batch / seconds.median,
            token_rate=tokens / seconds.median,
            parts=self.parts(clips, middle),
            steps=self.step_rows(clips),
            samples=tuple(samples),
            timeline=middle.spans,
        )

    def parts(self, clips: Sequence[Clip], middle: Clip) -> tuple[Part, ...]:
        sums = [clip.part_seconds() for clip in clips]
        names = sorted(sums[0], key=lambda name: (name == BETWEEN, ORDER.index(name) if name in ORDER else len(ORDER)))
        chosen = middle.part_seconds()
        return tuple(self._part(name, chosen[name], middle.seconds, [found[name] for found in sums]) for name in names)

    def _part(self, name: str, chosen: float, clip: float, samples: list[float]) -> Part:
        seconds, works = Spread.of(samples), self.works.get(name)
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
        for step in self.steps:
            parts = {part: statistics.median(s) for part, s in found.get((step.frame, step.scale), {}).items()}
            rows.append(
                StepRow(
                    frame=step.frame,
                    scale=step.scale,
                    size=self.subject.config.scales[step.scale],
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
