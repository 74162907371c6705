"""Sampling: what the steps arrive at, what the cache keeps, and that streams stay small."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from sharp_backbone import BATCH, CONFIG, GRID, SCHEMES, config_for, distance, draw, prompt, sharp_backbone

from videoar.decode_ahead import decode_ahead
from videoar.next_unit import cube, frame, from_sequence
from videoar.next_unit.flow import add_noise, clean_from, sampling_levels
from videoar.next_unit.sampling import SamplingOptions, clips_of, sample_units, unit_noise

EQUAL, WRONG = 1e-9, 1e-2
SEEDS = [5, 6]
schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def tokens_of(units) -> torch.Tensor:
    return torch.cat([unit.tokens for unit in units], dim=1)


def first_noise(layout, config) -> torch.Tensor:
    """What one-step sampling draws, unit after unit."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    like = torch.empty(0, dtype=torch.float64)
    return torch.cat([unit_noise(generators, n, config.patch_width, like) for n in layout.lengths], dim=1)


def test_four_steps_at_shift_five_are_those_of_self_forcing():
    assert [1000 * level for level in sampling_levels(4, 5)] == pytest.approx([1000, 937.5, 833.3333, 625])
    assert sampling_levels(2, 1) == (1, 0.5)


def test_the_flow_leads_back_from_any_level():
    clean, noise = draw(0, 3, 4), draw(1, 3, 4)
    for level in (0.0, 0.25, 1.0):
        torch.testing.assert_close(clean_from(add_noise(clean, noise, level), noise - clean, level), clean)


@pytest.mark.parametrize("method", ["renoise", "euler"])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_perfect_flow_leads_to_its_target(monkeypatch, method, steps):
    model, layout = sharp_backbone(CONFIG), cube().on(GRID)
    target = draw(0, BATCH, layout.length, CONFIG.patch_width)
    right = model.step

    def perfect(x, timesteps, text, layout, unit, cache, **where):
        right(x, timesteps, text, layout, unit, cache, **where)  # the cache is still written
        level = timesteps[0] / 1000
        return (x - target[:, layout.within(unit)]) / level if level else torch.zeros_like(x)

    monkeypatch.setattr(model, "step", perfect)
    options = SamplingOptions(steps=steps, method=method)
    found = tokens_of(sample_units(model, prompt(CONFIG), layout, seeds=SEEDS, options=options))
    assert distance(found, target) < EQUAL


@schemes
def test_a_unit_is_denoised_given_clean_units(scheme):
    """One step from pure noise is one teacher-forced pass, its history being what was sampled."""
    config, layout = config_for(scheme), scheme.on(GRID)
    model, text = sharp_backbone(config), prompt(config)
    clean = tokens_of(sample_units(model, text, layout, seeds=SEEDS, options=SamplingOptions(steps=1)))
    noise = first_noise(layout, config)
    timesteps = torch.full((BATCH,), 1000.0)
    with torch.no_grad():
        forced = model(noise, timesteps, text, layout, history=clean)
        without = model(noise, timesteps, text, layout, history=noise)
    assert distance(clean, noise - forced) < EQUAL
    assert distance(clean, noise - without) > WRONG


def test_guidance_moves_away_from_no_prompt():
    config, layout = CONFIG, frame().on(GRID)
    model, text, none = sharp_backbone(config), prompt(config), prompt(config, seed=8)
    options = SamplingOptions(steps=1, guidance=3.0)
    clean = tokens_of(sample_units(model, text, layout, seeds=SEEDS, options=options, uncond=none))
    noise, timesteps = first_noise(layout, config), torch.full((BATCH,), 1000.0)
    with torch.no_grad():
        cond, uncond = (model(noise, timesteps, given, layout, history=clean) for given in (text, none))
    assert distance(clean, noise - (uncond + 3 * (cond - uncond))) < EQUAL


def test_a_sample_depends_on_its_own_prompt_and_seed_alone():
    model, layout, text = sharp_backbone(CONFIG), cube().on(GRID), prompt(CONFIG)
    both = tokens_of(sample_units(model, text, layout, seeds=SEEDS))
    alone = tokens_of(sample_units(model, text[1:], layout, seeds=SEEDS[1:]))
    assert distance(both[1:], alone) < EQUAL
    other = tokens_of(sample_units(model, text, layout, seeds=[5, 7]))
    assert torch.equal(other[0], both[0]) and distance(other[1], both[1]) > WRONG


@pytest.mark.parametrize("method", ["renoise", "euler"])
def test_later_units_see_a_unit_at_the_level_of_the_context_noise(monkeypatch, method):
    model, layout, text = sharp_backbone(CONFIG), frame().on(GRID), prompt(CONFIG)
    right, seen = model.step, []

    def watched(x, timesteps, *rest, **where):
        seen.append((x.clone(), timesteps.clone()))
        return right(x, timesteps, *rest, **where)

    def sample(level: float) -> list[torch.Tensor]:
        seen.clear()
        options = SamplingOptions(steps=2, method=method, context_noise=level)
        return [unit.tokens for unit in sample_units(model, text, layout, seeds=SEEDS, options=options)]

    monkeypatch.setattr(model, "step", watched)
    clean = sample(0.0)
    assert all(
        (timesteps == 0).all() and torch.equal(x, u) for (x, timesteps), u in zip(seen[2::3], clean, strict=True)
    )
    noisy = sample(0.25)
    assert torch.equal(noisy[0], clean[0]), "the first unit sees no other, and is handed out clean"
    assert distance(noisy[1], clean[1]) > WRONG
    for (x, timesteps), unit in zip(seen[2::3], noisy, strict=True):
        noise = (x - 0.75 * unit) / 0.25
        assert (timesteps == 250).all() and 0.8 < noise.std() < 1.2 and abs(noise.mean()) < 0.2


def test_an_endless_stream_is_made_clip_by_clip():
    model, layout, text = sharp_backbone(CONFIG), cube().on(GRID), prompt(CONFIG)
    units = sample_units(model, text, layout, seeds=SEEDS, clips=None, window=3, sink=1)
    units, again = itertools.tee(itertools.islice(units, 3 * len(layout.units)))
    clips = list(clips_of(units, layout, CONFIG.patch))
    assert [(unit.clip, unit.unit) for unit in again] == list(itertools.product(range(3), range(8)))
    assert len(clips) == 3 and clips[0].shape == (BATCH, CONFIG.channels, 4, 6, 10)
    assert all(clip.isfinite().all() for clip in clips) and distance(clips[1], clips[2]) > WRONG


def test_clips_are_put_together_from_their_units():
    model, layout, text = sharp_backbone(CONFIG), cube().on(GRID), prompt(CONFIG)
    units = list(sample_units(model, text, layout, seeds=SEEDS, clips=2))
    one, two = clips_of(units, layout, CONFIG.patch)
    assert torch.equal(one, from_sequence(tokens_of(units[:8]), layout, CONFIG.patch))
    assert torch.equal(two, from_sequence(tokens_of(units[8:]), layout, CONFIG.patch))


def test_frames_are_decoded_one_chunk_after_another():
    class Chunk(NamedTuple):
        video: torch.Tensor
        state: int

    latents = [torch.full((1, 3, n, 2, 2), n / 2) for n in (1, 2, 3)]
    decoded = decode_ahead(latents, lambda x, state: Chunk(x + 0.25, (state or 0) + x.shape[2]))
    assert [float(video.mean()) for video in decoded] == [0.75, 1.0, 1.0], "clamped to pixels"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [1]}, "sample_units: expected 2 seeds"),
        ({"options": SamplingOptions(guidance=2.0)}, "sample_units: expected features of no prompt"),
        ({"clips": None}, "sample_units: expected a window for a stream without end"),
    ],
)
def test_what_does_not_fit_is_named(changes, said):
    with pytest.raises(ValueError, match=said):
        sample_units(sharp_backbone(CONFIG), prompt(CONFIG), cube().on(GRID), **{"seeds": SEEDS, **changes})


@pytest.mark.parametrize("changes", [{"steps": 0}, {"shift": 0.0}, {"method": "jump"}, {"context_noise": 1.0}])
def test_options_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match="expected"):
        SamplingOptions(**changes)
