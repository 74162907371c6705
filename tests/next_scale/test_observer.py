"""Watching a clip names its parts in order and changes nothing."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from videoar.next_scale.sampling import FrameDecoder
from videoar.profiling.subject import Options, preset_subject


class Notes:
    """Writes down what it is told; parts must not lie inside one another."""

    def __init__(self) -> None:
        self.parts, self.inside = [], False

    @contextmanager
    def part(self, name, *, frame=None, scale=None):
        assert not self.inside
        self.inside = True
        yield
        self.inside = False
        self.parts.append((name, frame, scale))


def test_parts_come_in_order_and_the_clip_is_the_same():
    pipeline = preset_subject("tiny", Options()).pipeline
    notes = Notes()
    watched = list(pipeline.stream([""], frames=5, seed=3, observer=notes))
    unwatched = list(pipeline.stream([""], frames=5, seed=3))
    assert all(torch.equal(a, b) for a, b in zip(watched, unwatched, strict=True))
    expected = [("text", None, None), ("prefill", None, None)]
    for frame in range(2):
        expected.append(("sampling", frame, 0))
        for scale in range(2):
            expected += [("transformer", frame, scale), ("sampling", frame, scale)]
        expected.append(("decode", frame, None))
    assert notes.parts == expected


def replayed(key, step):
    """Stands for a runner that replays graphs: what happens inside a step is not seen."""
    step()


def test_steps_that_are_replayed_are_one_part():
    subject = preset_subject("tiny", Options())
    text, notes = subject.pipeline.conditioner([""]), Notes()
    decoder = FrameDecoder(subject.pipeline.transformer, text, frames=2, run=replayed)
    assert len(list(decoder.decode(text, seeds=[0], observer=notes))) == 2
    assert notes.parts == [("prefill", None, None), *(("step", f, s) for f in range(2) for s in range(2))]
    before = len(notes.parts)
    assert len(list(decoder.decode(text, seeds=[0]))) == 2 and len(notes.parts) == before
