"""Training clips as latents: encoded once into memory, then drawn from at every step.

A frozen tokenizer gives a clip the same latents at every visit, so encoding it again is wasted; bit flips are drawn
after the encoder and stay fresh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from videoar.data.captions import COLOURS, DIRECTIONS, SHAPES, SPEEDS, Attributes, caption_of, combinations
from videoar.data.folder import VideoFolder
from videoar.data.pixels import from_uint8
from videoar.data.sprites import SpriteConfig, sample_batch
from videoar.tokenizer import VideoTokenizer
from videoar.training.clips import ClipsConfig
from videoar_kernels.reference.philox import philox_uniform


class LatentBatch(NamedTuple):
    """Latents (B, T, H, W, d) float32 and one caption a clip, "" where it has none."""

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
    """A function from step number to videos (B, 3, T, H, W) in [-1, 1] and their captions; a folder has no splits."""
    if data.kind == "folder":
        source = _folder(data).sample_batch
    else:
        source = partial(sample_batch, split=split, config=SpriteConfig(frames=data.frames, size=data.size))

    def draw(step: int) -> tuple[Tensor, list[str]]:
        clips = source(batch, seed, step * batch)
        return from_uint8(clips.video), clips.captions

    return draw


def all_captions(data: ClipsConfig) -> list[str]:
    """Every caption that the data may show: what the word encoder's vocabulary is made of."""
    if data.kind == "sprites":
        return [
            caption_of(Attributes(COLOURS[c.colour], SHAPES[c.shape], DIRECTIONS[c.direction], speed))
            for c in combinations()
            for speed in SPEEDS
        ]
    folder = _folder(data)
    return [folder.captions[path] for path in folder.clips]


def _folder(data: ClipsConfig) -> VideoFolder:
    return VideoFolder(data.path, frames=data.frames, size=data.size, fps=data.rate)
