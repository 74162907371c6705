"""The shipped model of paper U shows what held-out prompts ask for, in four steps a unit, in clips and in streams."""

from __future__ import annotations

import pytest
import torch

from videoar.data.captions import parse_caption
from videoar.data.measure import measure_batch
from videoar.data.pixels import to_uint8
from videoar.evaluation.adherence import text_to_video_adherence
from videoar.next_unit.pipeline import UnitPipeline
from videoar.next_unit.shipped import SHIPPED


@pytest.fixture(scope="module")
def pipeline() -> UnitPipeline:
    return UnitPipeline.from_pretrained(SHIPPED)


def test_it_is_small_and_takes_four_steps(pipeline: UnitPipeline):
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 10e6
    assert (pipeline.defaults.steps, pipeline.defaults.method, pipeline.defaults.guidance) == (4, "renoise", 1.0)


def test_clips_of_held_out_prompts_show_what_was_asked_for(pipeline: UnitPipeline):
    found = text_to_video_adherence(pipeline, prompts=32, wrap=True)
    assert min(found.right.values()) >= 0.85, found.right
    assert max(found.wrong_prompt[name] for name in ("colour", "shape", "direction")) <= 0.5, found.wrong_prompt


def test_a_stream_still_shows_the_sprite_after_many_contexts(pipeline: UnitPipeline):
    prompt = "a red square moving right quickly"
    chunks = list(pipeline.stream([prompt], frames=133, seed=0))
    video = to_uint8(torch.cat(chunks, 2))[:, -17:]
    seen = measure_batch(video, wrap=True)[0].attributes
    assert seen == parse_caption(prompt)
