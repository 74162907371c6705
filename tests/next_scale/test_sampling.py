"""Sampling: streams of their own, given frames kept, guidance applied."""

from __future__ import annotations

import pytest
import torch
from sharp_model import sharp_config, sharp_model
from torch import Tensor

from videoar.next_scale.guidance import GuidanceSchedule
from videoar.next_scale.inputs import frame_context, teacher_inputs
from videoar.next_scale.sampling import decode_frames
from videoar.next_scale.transformer import NextScaleTransformer
from videoar_kernels import pyramid_decode, unpack_bits

FRAMES = 3


@pytest.fixture(scope="module")
def model() -> NextScaleTransformer:
    return sharp_model(sharp_config())


def prompts(model: NextScaleTransformer, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (count, model.config.text_len, model.config.text_width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def bits_of(model: NextScaleTransformer, text: Tensor, seeds: list[int], **options) -> Tensor:
    frames = decode_frames(model, text, frames=options.pop("frames", FRAMES), seeds=seeds, **options)
    return torch.stack([frame.bits for frame in frames], dim=1)


def test_a_prompt_and_seed_give_the_same_bits_in_any_batch(model: NextScaleTransformer):
    text = prompts(model, 3)
    together = bits_of(model, text, [5, 6, 7])
    assert torch.equal(together[1:2], bits_of(model, text[1:2], [6]))
    assert not torch.equal(together[1:2], bits_of(model, text[1:2], [8]))


def test_given_frames_are_kept_and_the_rest_follows_from_them(model: NextScaleTransformer):
    text = prompts(model, 1)
    given = bits_of(model, prompts(model, 2)[1:], [99])[:, :2]
    bits = bits_of(model, text, [5], given=given)
    assert torch.equal(bits[:, :2], given)
    assert not torch.equal(bits[:, 2], bits_of(model, text, [5])[:, 2])


def test_continuing_ones_own_bits_gives_the_same_clip(model: NextScaleTransformer):
    text = prompts(model, 2)
    whole = bits_of(model, text, [1, 2])
    assert torch.equal(bits_of(model, text, [1, 2], given=whole[:, :1]), whole)


def test_frames_come_with_the_sum_that_their_bits_decode_to(model: NextScaleTransformer):
    config = model.config
    for frame in decode_frames(model, prompts(model, 1), frames=2, seeds=[0]):
        total = pyramid_decode(frame.bits[:, None], config.scales, dim=config.bits, dtype=torch.float64)
        assert torch.allclose(frame.total, total[:, 0])


def test_sampling_sees_what_training_sees(model: NextScaleTransformer):
    """Greedy bits of a clip, fed back through the teacher, are what one masked pass predicts."""
    config, text = model.config, prompts(model, 2)
    frames = list(decode_frames(model, text, frames=FRAMES, seeds=[0, 0], temperature=0.0))
    bits = torch.stack([frame.bits for frame in frames], dim=1)
    total = torch.stack([frame.total for frame in frames], dim=1)
    context = frame_context(total, config)
    inputs = context.clone()  # the first scale starts from the frame before; the others from the scales below
    for t in range(FRAMES):
        start = 1
        for k, (height, width) in enumerate(config.scales[1:], start=1):
            below = pyramid_decode(bits[:, t : t + 1], config.scales, dim=config.bits, keep=k, dtype=torch.float64)
            down = torch.nn.functional.adaptive_avg_pool2d(below[:, 0].movedim(-1, 1), (height, width))
            inputs[:, t, start : start + height * width] = down.movedim(1, -1).flatten(1, 2)
            start += height * width
    with torch.no_grad():
        logits = model(text, inputs, context)
    assert torch.equal(logits > 0, unpack_bits(bits, config.bits))


def test_guidance_one_is_the_conditional_model_and_more_moves_it(model: NextScaleTransformer):
    text, uncond = prompts(model, 2), torch.zeros_like(prompts(model, 2))
    plain = bits_of(model, text, [1, 2])
    nearly = GuidanceSchedule(1.0, 1.0, 1.0, 1.0 + 1e-12)
    assert torch.equal(bits_of(model, text, [1, 2], uncond=uncond, guidance=nearly), plain)
    strong = GuidanceSchedule.constant(6.0)
    assert not torch.equal(bits_of(model, text, [1, 2], uncond=uncond, guidance=strong), plain)


def test_guidance_without_uncond_and_missing_seeds_are_refused(model: NextScaleTransformer):
    text = prompts(model, 2)
    with pytest.raises(ValueError, match="uncond"):
        list(decode_frames(model, text, frames=1, seeds=[0, 0], guidance=GuidanceSchedule.text()))
    with pytest.raises(ValueError, match="expected 2 seeds"):
        list(decode_frames(model, text, frames=1, seeds=[0]))
    with pytest.raises(ValueError, match="expected 2 seeds within"):
        list(decode_frames(model, text, frames=1, seeds=[0, -1]))


def test_a_window_bounds_the_cache_on_long_clips():
    model = sharp_model(sharp_config(window=1, depth=1))
    assert bits_of(model, prompts(model, 1), [0], frames=12).shape[1] == 12


def test_the_paper_context_hides_the_last_residual_and_resampled_shows_it():
    """Eq. 6: two clips that differ in the last residual of frame 0 alone look alike to the literal design."""
    config = sharp_config()
    latents = torch.randn(1, 2, 3, 3, config.bits, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shape = (1, 2, len(config.scales))
    flip = torch.zeros(shape, dtype=torch.float64)
    flip[0, 0, -1] = 0.5
    clean = teacher_inputs(latents, config, flip_p=torch.zeros(shape, dtype=torch.float64), seed=0)
    other = teacher_inputs(latents, config, flip_p=flip, seed=0)
    assert torch.equal(clean.inputs[:, :, 1:], other.inputs[:, :, 1:])
    assert not torch.equal(clean.context[:, 1], other.context[:, 1])
    assert teacher_inputs(latents, config.replace(context="paper")).context is None
