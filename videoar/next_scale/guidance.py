"""Temporal-spatial guidance: how strongly the condition steers each (frame, scale). Source: paper S, App. A."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GuidanceSchedule:
    """Guidance g(frame, scale), bilinear between its four corners; 1 is the plain conditional model.

    Args:
        first: at the first scale of the first frame.
        first_end: at the last scale of the first frame.
        last: at the first scale of the last frame.
        last_end: at the last scale of the last frame.
    """

    first: float = 1.0
    first_end: float = 1.0
    last: float = 1.0
    last_end: float = 1.0

    @classmethod
    def constant(cls, guidance: float) -> GuidanceSchedule:
        return cls(guidance, guidance, guidance, guidance)

    @classmethod
    def ucf(cls) -> GuidanceSchedule:
        """The first scale rises from 1 to 5 over the frames, then linearly to 10 inside each frame."""
        return cls(first=1.0, first_end=10.0, last=5.0, last_end=10.0)

    @classmethod
    def text(cls) -> GuidanceSchedule:
        """Falls from 5 to 3 along time and scale together."""
        return cls(first=5.0, first_end=4.0, last=4.0, last_end=3.0)

    @property
    def is_one(self) -> bool:
        """Whether the condition alone decides, so that no unconditional pass is needed."""
        return self.first == self.first_end == self.last == self.last_end == 1.0

    def at(self, frame: int, scale: int, frames: int, scales: int) -> float:
        """g at a frame and scale of a clip of `frames` frames of `scales` scales; frames beyond count as the last."""
        time = min(frame / max(frames - 1, 1), 1.0)
        depth = scale / max(scales - 1, 1)
        start = self.first + (self.last - self.first) * time
        end = self.first_end + (self.last_end - self.first_end) * time
        return start + (end - start) * depth
