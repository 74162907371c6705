"""What clips were drawn from is measured back, and a model that draws otherwise stands out."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_sprites import tiny_sprites

from videoar.data.pixels import from_uint8
from videoar.evaluation import clip_look as module
from videoar.evaluation.clip_look import ClipLook, clip_look, look_figures, look_rows, look_table, real_clips
from videoar.next_unit import UnitPipeline


@pytest.fixture(scope="module")
def real() -> tuple[torch.Tensor, list[str]]:
    return real_clips(24, 3, frames=13, batch=10)


def test_real_clips_are_drawn_as_the_data_says(real):
    look = clip_look(*real)
    assert look.ways["slowly"].mean == pytest.approx(12, abs=0.2)
    assert look.ways["quickly"].mean == pytest.approx(28, abs=0.3)
    assert look.background.mean == pytest.approx(0.47, abs=0.04) and look.background.deviation > 0.03
    assert abs(look.drift.mean) < 1e-3 and look.phase < 0.5


def test_quicker_and_larger_sprites_are_seen_each_for_itself(real):
    look = clip_look(*real)
    quick, large = (
        clip_look(*real_clips(24, 3, frames=13, **change)) for change in ({"faster": 1.25}, {"larger": 1.2})
    )
    for speed, way in look.ways.items():
        assert quick.ways[speed].mean == pytest.approx(1.25 * way.mean, rel=0.02)
        assert large.ways[speed].mean == pytest.approx(way.mean, rel=0.02)
    assert large.side.mean == pytest.approx(1.2 * look.side.mean, rel=0.02)
    assert quick.side.mean == pytest.approx(look.side.mean, rel=0.02)


def test_a_background_that_brightens_and_sprites_in_one_place_are_seen(real):
    videos, captions = real
    ramp = torch.arange(13).view(1, 13, 1, 1, 1)
    brighter = clip_look((videos + ramp.clamp(max=12)).clamp(max=255).to(torch.uint8), captions)
    assert brighter.drift.mean == pytest.approx(12 / 255, abs=0.01)
    middle = [seen.centres[6].round().long().tolist() for seen in module.measure_batch(videos, wrap=True)]
    gathered = torch.stack([v.roll((-y, -x), (1, 2)) for v, (x, y) in zip(videos, middle, strict=True)])
    assert clip_look(gathered, captions).phase > 0.95


def test_clips_without_sprites_are_refused(real):
    with pytest.raises(ValueError, match="at least two clips with a sprite at each speed"):
        clip_look(torch.full_like(real[0], 120), real[1])


def test_a_quick_model_is_told_from_a_right_one(monkeypatch):
    """A model of perfect sprites that are too quick: the distance of real clips as quick is that of its own."""
    drawn, captions = real_clips(16, 4, frames=13, faster=1.4)
    monkeypatch.setattr(UnitPipeline, "generate", lambda self, prompts, *, seed: from_uint8(drawn[list(seed)]))
    monkeypatch.setattr(module, "heldout_prompts", lambda count, seed: captions[:count])
    monkeypatch.setattr(module, "reconstructed", lambda autoencoder, videos, batch: videos)
    rows = look_rows({"model": tiny_sprites()}, clips=16, reference=24, batch=8)
    assert list(rows) == ["real", "reconstructed", "model", "real, 1.40 times as quick", *list(rows)[-2:]]
    near, far, drawn_anew = (rows[name][1].changes for name in list(rows)[1:4])
    assert far > 2 * near and drawn_anew > 2 * near
    assert look_table(rows).count("\n") == 1 + len(rows)
    figures = json.loads(json.dumps(look_figures(rows)))["model"]
    assert figures["ways"]["slowly"]["mean"] == pytest.approx(12 * 1.4, rel=0.02)
    assert figures["frechet"]["changes"] == far and set(figures) == {*ClipLook._fields, "frechet"}
    with pytest.raises(ValueError, match="at least one model"):
        look_rows({})
