"""Mask, positions and cache together: one masked pass equals step-by-step cached decoding, and errors are seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sharp_model import BATCH, FRAMES, clip_inputs, sharp_config, sharp_model
from torch import Tensor

from videoar.next_scale.sampling import decoding_cache
from videoar.next_scale.transformer import NextScaleTransformer

EQUAL, WRONG = 1e-10, 1e-2
Step = tuple[int, int]


@torch.no_grad()
def decode(
    model: NextScaleTransformer,
    *,
    place: Callable[[int, int], Step] = lambda frame, scale: (frame, scale),
    skip: Callable[[int, int], bool] = lambda frame, scale: False,
) -> Tensor:
    """Logits (B, T, N, d) block by block; `place` tells the model where it stands, `skip` forgets a block."""
    text, inputs, context = clip_inputs(model.config)
    layout = model.layout(FRAMES)
    cache = decoding_cache(model, text, FRAMES + 2)
    model.prefill(text, cache)
    cache.commit()
    frames = []
    for frame in range(FRAMES):
        blocks = []
        for scale in range(len(model.config.scales)):
            here = layout.within_frame(scale)
            known = inputs[:, frame, here]
            around = None if context is None else context[:, frame, here]
            told_frame, told_scale = place(frame, scale)
            blocks.append(model.step(text, known, around, cache, frame=told_frame, scale=told_scale))
            if skip(frame, scale):
                cache.rollback()
            else:
                cache.commit(close=scale == len(model.config.scales) - 1)
        frames.append(torch.cat(blocks, dim=1))
    return torch.stack(frames, dim=1)


@torch.no_grad()
def one_pass(model: NextScaleTransformer, **options) -> Tensor:
    text, inputs, context = clip_inputs(model.config)
    return model(text, inputs, context, **options)


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().mean())


@pytest.mark.parametrize("window", [None, 1, 2])
@pytest.mark.parametrize("align", ["index", "grid"])
@pytest.mark.parametrize("context", ["paper", "resampled"])
def test_one_masked_pass_equals_cached_decoding(context: str, align: str, window: int | None):
    model = sharp_model(sharp_config(context=context, align=align, window=window))
    logits = one_pass(model)
    assert logits.shape == (BATCH, FRAMES, model.config.tokens_per_frame, model.config.bits)
    assert distance(decode(model), logits) < EQUAL


@pytest.mark.parametrize("changes", [{"qk_norm": False}, {"kv_heads": None}, {"pooled_text": False}])
def test_equality_holds_for_every_variant_of_the_block(changes: dict):
    model = sharp_model(sharp_config(**changes))
    assert distance(decode(model), one_pass(model)) < EQUAL


@pytest.fixture(scope="module")
def model() -> NextScaleTransformer:
    return sharp_model(sharp_config())


def test_attention_is_peaked_enough_to_tell(model: NextScaleTransformer):
    order = torch.randperm(FRAMES - 1, generator=torch.Generator().manual_seed(0))
    text, inputs, context = clip_inputs(model.config)
    with torch.no_grad():
        shuffled = inputs.clone()
        shuffled[:, :-1] = inputs[:, order]
        changed = model(text, shuffled, context)
    assert distance(changed[:, -1], one_pass(model)[:, -1]) > WRONG


def test_a_wrong_frame_offset_is_seen(model: NextScaleTransformer):
    wrong = decode(model, place=lambda frame, scale: (frame + (frame > 1), scale))
    right = one_pass(model)
    assert distance(wrong[:, :2], right[:, :2]) < EQUAL
    assert distance(wrong[:, 2:], right[:, 2:]) > WRONG


def test_a_wrong_scale_is_seen(model: NextScaleTransformer):
    """The right tokens under another scale's embedding, with the positions kept."""
    right = one_pass(model)
    weight = model.scale_embedding.weight
    with torch.no_grad():
        kept = weight.clone()
        weight.copy_(kept.roll(1, 0))
        wrong = decode(model)
        weight.copy_(kept)
    assert distance(wrong, right) > WRONG


def test_scales_in_the_wrong_order_are_seen(model: NextScaleTransformer):
    """Two blocks of equal size told to be each other's frame: content and place disagree."""
    swap = {1: 2, 2: 1}
    wrong = decode(model, place=lambda frame, scale: (swap.get(frame, frame), scale))
    assert distance(wrong[:, 1:], one_pass(model)[:, 1:]) > WRONG


def test_a_dropped_frame_is_seen(model: NextScaleTransformer):
    wrong = decode(model, skip=lambda frame, scale: frame == 1)
    right = one_pass(model)
    assert distance(wrong[:, 0], right[:, 0]) < EQUAL
    assert distance(wrong[:, 2:], right[:, 2:]) > WRONG


def test_an_uncommitted_scale_is_seen(model: NextScaleTransformer):
    wrong = decode(model, skip=lambda frame, scale: scale == 1)
    assert distance(wrong[:, :, -9:], one_pass(model)[:, :, -9:]) > WRONG


def test_a_hidden_frame_changes_what_follows_only(model: NextScaleTransformer):
    keep = torch.ones(FRAMES, FRAMES, dtype=torch.bool)
    keep[2, 1] = False
    hidden, right = one_pass(model, frame_keep=keep), one_pass(model)
    assert distance(hidden[:, :2], right[:, :2]) < EQUAL
    assert distance(hidden[:, 2], right[:, 2]) > WRONG
