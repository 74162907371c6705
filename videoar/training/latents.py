"""Training clips as latents: encoded once into memory, then drawn from at every step.

A frozen tokenizer gives a clip the same latents at every visit, so encoding it again is wasted; bit flips are drawn
after the encoder and stay fresh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from videoar.data.pixels import from_uint8
from videoar.data.sprites import SpriteConfig, sample_batch
from videoar.tokenizer import VideoTokenizer
from videoar.training.clips import ClipsConfig, clip_batches
from videoar_kernels.reference.philox import philox_uniform


class LatentBatch(NamedTuple):
    """Latents (B, T, H, W, d) float32 and one caption a clip; a folder's clips have none ("")."""

    latents: Tensor
    captions: list[str]


@dataclass(frozen=True)
class LatentPool:
    """Encoded clips: `latents` (P, T, H, W, d) float16 and P captions."""

    latents: Tensor
    captions: list[str]

    def draw(self, batch: int, *, seed: int, offset: int) -> LatentBatch:
        """`batch` clips with replacement, by Philox."""
        rows = (philox_uniform(batch, seed, offset) * len(self.captions)).long().tolist()
        return LatentBatch(self.latents[rows].float(), [self.captions[row] for row in rows])


@torch.no_grad()
def encode_pool(
    tokenizer: VideoTokenizer,
    data: ClipsConfig,
    clips: int,
    seed: int,
    *,
    batch: int = 32,
    advance: Callable[[int], object] = lambda done: None,
) -> LatentPool:
    """Encode the first `clips` clips of the training data.

    Args:
        tokenizer: frozen; decides the device.
        data: where clips come from.
        clips: how many, rounded up to whole batches.
        seed: of the clips.
        batch: clips at a time.
        advance: told how many clips are done.
    """
    draw = captioned_clips(data, batch, seed)
    device = next(tokenizer.parameters()).device
    latents, captions = [], []
    for step in range(-(-clips // batch)):
        video, text = draw(step)
        latents.append(tokenizer.encode(video.to(device)).half().cpu())
        captions += text
        advance(len(captions))
    return LatentPool(torch.cat(latents), captions)


def captioned_clips(
    data: ClipsConfig, batch: int, seed: int, *, split: str = "train"
) -> Callable[[int], tuple[Tensor, list[str]]]:
    """A function from step number to videos (B, 3, T, H, W) in [-1, 1] and their captions."""
    if data.kind == "sprites":
        sprites = SpriteConfig(frames=data.frames, size=data.size)

        def draw(step: int) -> tuple[Tensor, list[str]]:
            clips = sample_batch(batch, seed, step * batch, split=split, config=sprites)
            return from_uint8(clips.video), clips.captions

        return draw
    videos = clip_batches(data, batch, seed)
    return lambda step: (videos(step), [""] * batch)
