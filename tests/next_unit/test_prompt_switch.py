"""Another prompt in mid-stream: the past is computed anew under it, at the right positions, and only what is seen."""

from __future__ import annotations

import itertools

import pytest
import torch
from recorded_steps import RecordedSteps
from sharp_backbone import distance
from tiny_pipeline import BACKBONE, GRID, tiny_pipeline

from videoar.next_unit import parse_units, to_sequence
from videoar.next_unit.denoising import unit_noise
from videoar.next_unit.frames import ends_frames
from videoar.next_unit.prompt_switch import CleanUnits
from videoar.next_unit.sampling import UnitDecoder
from videoar.step_graphs import run_eagerly

EQUAL, WRONG = 1e-9, 1e-2
PROMPTS = ["a red circle moving up slowly", "a blue star moving left quickly"]
OTHERS = ["a green square moving down quickly", "a yellow heart moving right slowly"]
STRIDE, FPS = 4, 8.0
DEPTH = BACKBONE.depth


def pipeline_of(scheme: str, **defaults):
    levels = 3 if scheme.startswith("multiscale") else 0
    return tiny_pipeline(scheme, levels=levels, dtype=torch.float64, **{"steps": 1, **defaults})


def after(frames: int) -> float:
    """The second at which the next frame is the one after so many latent frames."""
    return (1 + STRIDE * (frames - 1)) / FPS


def stream(pipeline, frames: int, switches=None, **changes) -> torch.Tensor:
    """Latents of the first frames of a stream."""
    parts, count = [], 0
    for part in pipeline.latents(PROMPTS, seed=[1, 2], switches=switches, **changes):
        parts.append(part)
        count += part.shape[2]
        if count >= frames:
            return torch.cat(parts, dim=2)


SCHEMES = ["frame", "key_detail(2)", "cube(2, 2, 2)", "multiscale(1x1, 2x2)"]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_prompt_changes_nothing_while_all_is_seen(scheme, guidance):
    pipeline = pipeline_of(scheme, window=40, guidance=guidance, steps=2)
    plain = stream(pipeline, 12)
    assert distance(stream(pipeline, 12, {after(4): PROMPTS}), plain) < EQUAL


@pytest.mark.parametrize("frames", [14, 15, 30])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_last_switch_still_shows_and_a_later_one_is_refused(scheme, frames):
    pipeline = pipeline_of(scheme)
    last = pipeline.last_switch(frames)
    plain, other = (pipeline.generate(PROMPTS, frames=frames, switches=said) for said in (None, {last: OTHERS}))
    begin = round(last * FPS)
    assert distance(other[:, :, :begin], plain[:, :, :begin]) < EQUAL
    assert all(distance(other[:, :, n], plain[:, :, n]) > WRONG for n in range(begin, frames))
    with pytest.raises(ValueError, match=f"expected switches up to {last:g} s, .* {frames} frames show, got"):
        pipeline.generate(PROMPTS, frames=frames, switches={last + 1e-6: OTHERS})


def test_a_stream_within_one_unit_takes_no_other_prompt():
    pipeline = pipeline_of("cube(1, 1, 1)")
    assert pipeline.last_switch(13) == 0 and pipeline.last_switch(14) == 13 / FPS


# Grids of 4 frames: a stream of 12 drops units long before the switch after 8.
DROPPING = [("frame", 3), ("key_detail(2)", 1), ("cube(2, 2, 2)", 5), ("multiscale(1x1, 2x2)", 2), ("frame", 0)]


@pytest.mark.parametrize("sink", [0, 1])
@pytest.mark.parametrize(("scheme", "window"), DROPPING, ids=str)
def test_the_same_prompt_changes_nothing_where_all_that_echoes_is_computed_anew(scheme, window, sink):
    """A key of layer l holds what reached it through l windows, so depth * window units give it back."""
    pipeline = pipeline_of(scheme, window=window, sink=sink)
    plain = stream(pipeline, 16)
    again = stream(pipeline, 16, {after(8): PROMPTS, after(12): PROMPTS}, history=DEPTH * window)
    assert distance(again, plain) < EQUAL


@pytest.mark.parametrize("sink", [0, 1])
def test_the_window_alone_forgets_what_deeper_layers_had_of_dropped_units(sink):
    pipeline = pipeline_of("frame", window=2, sink=sink)
    plain, switched = stream(pipeline, 12), stream(pipeline, 12, {after(8): PROMPTS})
    assert torch.equal(switched[:, :, :8], plain[:, :, :8])
    assert distance(switched[:, :, 8:], plain[:, :, 8:]) > WRONG
    # With one layer there are no echoes.
    pipeline.transformer.blocks = pipeline.transformer.blocks[:1]
    pipeline.transformer.config = BACKBONE.replace(depth=1)
    plain, switched = stream(pipeline, 12), stream(pipeline, 12, {after(8): PROMPTS})
    assert distance(switched, plain) < EQUAL


def test_positions_that_are_not_closed_up_are_seen(monkeypatch):
    """A sink must stay as near as it was: with the times of the stream it would be eight frames away."""
    pipeline = pipeline_of("frame", window=2, sink=1, history=2 * DEPTH)
    plain = stream(pipeline, 12)
    assert distance(stream(pipeline, 12, {after(8): PROMPTS}), plain) < EQUAL
    monkeypatch.setattr(CleanUnits, "start", lambda self, clip, unit: clip * GRID[0])
    assert distance(stream(pipeline, 12, {after(8): PROMPTS})[:, :, 8:], plain[:, :, 8:]) > WRONG


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_prompt_changes_what_follows_and_nothing_before(scheme):
    pipeline = pipeline_of(scheme, window=3, sink=1)
    plain, switched = stream(pipeline, 12), stream(pipeline, 12, {after(8): OTHERS})
    assert torch.equal(switched[:, :, :8], plain[:, :, :8])
    assert distance(switched[:, :, 8:], plain[:, :, 8:]) > WRONG
    one = stream(pipeline, 12, {after(8): OTHERS[0]})
    assert torch.equal(one[:1], switched[:1]) and distance(one[1:], switched[1:]) > WRONG


def test_a_unit_after_the_switch_sees_the_past_as_the_new_prompt_has_it(monkeypatch):
    """One step from noise is one teacher-forced pass under the new prompt, whose history the old one sampled."""
    pipeline = pipeline_of("frame", window=3)
    layout, model = parse_units("frame").on(GRID), pipeline.transformer
    latents = stream(pipeline, 4, {after(3): OTHERS})
    clean = to_sequence(latents, layout, BACKBONE.patch)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    noise = torch.cat([unit_noise(generators, n, BACKBONE.patch_width, clean) for n in layout.lengths], dim=1)
    with torch.no_grad():
        text = pipeline.conditioner(OTHERS)
        forced = noise - model(noise, torch.full((2,), 1000.0), text, layout, history=clean)
    last = layout.within(3)
    assert distance(clean[:, last], forced[:, last]) < EQUAL
    # What is computed under the old prompt is another past.
    monkeypatch.setattr(UnitDecoder, "switch", lambda self, text, uncond: self.read(text, uncond))
    stale = to_sequence(stream(pipeline, 4, {after(3): OTHERS}), layout, BACKBONE.patch)
    assert distance(stale[:, last], forced[:, last]) > WRONG


def test_a_switch_waits_until_no_frame_is_half_made():
    pipeline = pipeline_of("cube(2, 2, 2)", window=7)
    plain = stream(pipeline, 8)
    for time, first in ((after(2), 2), (after(2) + 0.01, 4), (0.01, 2), (after(5), 6)):
        switched = stream(pipeline, 8, {time: OTHERS})
        assert torch.equal(switched[:, :, :first], plain[:, :, :first])
        assert distance(switched[:, :, first : first + 1], plain[:, :, first : first + 1]) > WRONG


def test_a_switch_may_be_asked_for_while_the_stream_runs():
    pipeline, switches = pipeline_of("frame", window=3), {}
    parts = []
    for part in itertools.islice(pipeline.latents(PROMPTS, seed=[1, 2], switches=switches), 8):
        parts.append(part)
        if len(parts) == 3:
            switches[after(4)] = OTHERS
    assert torch.equal(torch.cat(parts, dim=2), stream(pipeline, 8, {after(4): OTHERS}))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_passes_that_are_replayed_compute_the_past_anew_too(scheme):
    """Streams of one decoder, whose recorded passes are replayed, each with two switches."""
    pipeline = pipeline_of(scheme)
    layout, model = pipeline.defaults.layout, pipeline.transformer
    with torch.no_grad():
        texts = [pipeline.conditioner(said) for said in (PROMPTS, OTHERS)]

    def made(run) -> list[torch.Tensor]:
        options = {"options": pipeline.defaults.options, "clips": None, "window": 2, "sink": 1, "history": 4}
        decoder = UnitDecoder(model, texts[0], layout, run=run, **options)
        found = []
        for seeds in ([1, 2], [3, 4]):
            units = decoder.decode(texts[0], seeds=seeds)
            for number in range(12):
                found.append(next(units).tokens)
                if number in (3, 8):
                    decoder.switch(texts[number % 2])
            units.close()
        return found

    run = RecordedSteps()
    for one, other in zip(made(run), made(run_eagerly), strict=True):
        assert torch.equal(one, other)
    assert run.replays > len(run.steps)


def test_frames_end_where_nothing_is_begun():
    assert ends_frames(parse_units("frame").on(GRID)) == (True,) * 4
    assert ends_frames(parse_units("cube(2, 2, 1)").on(GRID)) == (False, True, False, True)
    assert ends_frames(parse_units("key_detail(2)").on(GRID)) == (False, True)
    assert ends_frames(parse_units("multiscale(1x1, 2x2)").on(GRID)) == (False, False, True)


def test_what_makes_no_sense_is_refused():
    pipeline = pipeline_of("frame", window=3)
    with pytest.raises(ValueError, match="expected switches after 0 s, got 0"):
        stream(pipeline, 4, {0.0: OTHERS})
    with pytest.raises(ValueError, match="expected 2 prompts, got 1"):
        stream(pipeline, 8, {after(2): OTHERS[:1]})
    with pytest.raises(ValueError, match="history of at least the window, 3, got 2"):
        stream(pipeline, 4, history=2)
    text = pipeline.conditioner(PROMPTS).detach()
    with pytest.raises(RuntimeError, match="expected a stream that is being decoded"):
        UnitDecoder(pipeline.transformer, text, pipeline.defaults.layout).switch(text)
