"""Causal decoding over (frame, scale) with a KV cache. Source: paper S, Sec. 4.2 and App. A."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from videoar.next_scale.guidance import GuidanceSchedule
from videoar.next_scale.transformer import NextScaleTransformer
from videoar_kernels import KVCache, pyramid_resample, pyramid_step, sample_bits


class DecodedFrame(NamedTuple):
    """One latent frame: packed bits (B, N, ceil(d / 8)) and what the tokenizer decodes (B, H, W, d)."""

    bits: Tensor
    total: Tensor


@torch.no_grad()
def decode_frames(
    transformer: NextScaleTransformer,
    text: Tensor,
    *,
    frames: int,
    seeds: Sequence[int],
    uncond: Tensor | None = None,
    guidance: GuidanceSchedule | None = None,
    temperature: float = 1.0,
    given: Tensor | None = None,
) -> Iterator[DecodedFrame]:
    """Yield latent frames one after another, each as soon as its last scale is drawn.

    A sample depends on its own prompt and seed alone, not on what else is in the batch.

    Args:
        transformer: the model.
        text: conditioner features (B, text_len, text_width).
        frames: latent frames in all, the given ones included.
        seeds: B seeds.
        uncond: features of no condition, like `text`; needed for guidance.
        guidance: schedule; None is no guidance.
        temperature: of the bits; 0 is greedy.
        given: packed bits of the first frames (B, F, N, ceil(d / 8)): image-to-video and continuation.

    Raises:
        ValueError: if seeds and prompts differ in number, or guidance lacks `uncond`.
    """
    config, scales, batch = transformer.config, list(transformer.config.scales), text.shape[0]
    guidance = guidance or GuidanceSchedule()
    if len(seeds) != batch:
        raise ValueError(f"decode_frames: expected {batch} seeds, got {len(seeds)}")
    if not guidance.is_one and uncond is None:
        raise ValueError("decode_frames: expected features of no condition (uncond) for guidance, got None")
    prompt = text if guidance.is_one else torch.cat([text, uncond])  # conditional and not, as one batch
    copies = prompt.shape[0] // batch
    layout = transformer.layout(frames)
    cache = decoding_cache(transformer, prompt, frames)
    transformer.prefill(prompt, cache)
    cache.commit()

    height, width = scales[-1]
    # What is known so far adds up in float32, whatever the transformer computes in.
    wide = torch.promote_types(text.dtype, torch.float32)
    previous = text.new_zeros(batch, height, width, config.bits, dtype=wide)
    for frame in range(frames):
        resampled = pyramid_resample(previous[:, None], scales)[:, 0]  # (B, N, d)
        inputs, total, bits = resampled[:, layout.within_frame(0)], torch.zeros_like(previous), []
        for scale, size in enumerate(scales):
            here = layout.within_frame(scale)
            context = None if transformer.context is None else resampled[:, here].repeat(copies, 1, 1)
            logits = transformer.step(prompt, inputs.repeat(copies, 1, 1), context, cache, frame=frame, scale=scale)
            cache.commit(close=scale == len(scales) - 1)
            if given is not None and frame < given.shape[1]:
                bits.append(given[:, frame, here])
            else:
                strength = guidance.at(frame, scale, frames, len(scales))
                bits.append(_draw(logits, copies, strength, temperature, seeds, frame * len(scales) + scale))
            following = scales[scale + 1] if scale + 1 < len(scales) else None
            total, inputs = pyramid_step(total, bits[-1], size, following)
        yield DecodedFrame(torch.cat(bits, dim=1), total)
        previous = total


def decoding_cache(transformer: NextScaleTransformer, text: Tensor, frames: int) -> KVCache:
    """An empty cache for `frames` frames after the text, or for the window where the model has one."""
    config = transformer.config
    seen = frames if config.window is None else min(frames, config.window + 1)
    return KVCache(
        config.depth,
        text.shape[0],
        config.key_heads,
        config.text_len + seen * config.tokens_per_frame,
        config.head_dim,
        sink=config.text_len,
        window=None if config.window is None else config.window * config.tokens_per_frame,
        dtype=text.dtype,
        device=text.device,
    )


def _draw(
    logits: Tensor, copies: int, strength: float, temperature: float, seeds: Sequence[int], offset: int
) -> Tensor:
    """One draw a sample, so that each has its own random stream."""
    cond, uncond = (logits, None) if copies == 1 else logits.chunk(2)
    drawn = [
        sample_bits(
            cond[row : row + 1],
            uncond=None if uncond is None else uncond[row : row + 1],
            guidance=strength,
            temperature=temperature,
            seed=seed,
            offset=offset,
        ).bits
        for row, seed in enumerate(seeds)
    ]
    return torch.cat(drawn)
