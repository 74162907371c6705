"""Parts of a clip are timed where they begin and end."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
import torch

from videoar.profiling.recorder import Clip, CpuRecorder, CudaRecorder, Span


def busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def run(recorder) -> None:
    with recorder.part("text"):
        busy(1e-3)
    busy(2e-3)
    for frame in range(2):
        with recorder.part("transformer", frame=frame, scale=0):
            busy(1e-3)
        with recorder.part("decode", frame=frame):
            busy(1e-3)


def test_parts_and_what_lies_between_add_up_to_the_clip():
    clip = CpuRecorder().clip(run)
    assert [(s.part, s.frame, s.scale) for s in clip.spans] == [
        ("text", None, None), ("transformer", 0, 0), ("decode", 0, None), ("transformer", 1, 0), ("decode", 1, None),
    ]  # fmt: skip
    parts = clip.part_seconds()
    assert set(parts) == {"text", "transformer", "decode", "between parts"}
    assert sum(parts.values()) == pytest.approx(clip.seconds)
    assert parts["transformer"] >= 2e-3 and parts["between parts"] >= 2e-3
    assert all(a.end <= b.begin for a, b in pairwise(clip.spans))


def test_a_recorder_starts_every_clip_anew():
    recorder = CpuRecorder()
    first, second = recorder.clip(run), recorder.clip(run)
    assert len(first.spans) == len(second.spans) == 5
    assert second.spans[0].begin < 1.0


def test_the_first_frame_is_there_when_it_is_decoded_or_else_drawn():
    spans = (
        Span("transformer", 0, 0, 0.0, 1.0), Span("sampling", 0, 0, 1.0, 0.5), Span("sampling", 1, 0, 2.0, 1.0),
    )  # fmt: skip
    assert Clip(4.0, spans).first_frame == 1.5
    assert Clip(4.0, (*spans, Span("decode", 0, None, 1.5, 2.0))).first_frame == 3.5


def test_overlapping_parts_are_taken_from_what_lies_between():
    clip = Clip(3.0, (Span("transformer", 0, 0, 0.0, 3.0), Span("decode", 0, None, 1.0, 1.0)))
    assert clip.part_seconds()["between parts"] == -1.0


@pytest.mark.gpu
def test_cuda_events_time_work_that_the_host_only_queued():
    x = torch.randn(4096, 4096, device="cuda")

    def queue(recorder):
        with recorder.part("transformer", frame=0, scale=0):
            for _ in range(20):
                x @ x

    CudaRecorder().clip(queue)
    clip = CudaRecorder().clip(queue)
    assert 0.5 * clip.seconds < clip.spans[0].seconds <= clip.seconds
