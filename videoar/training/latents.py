"""Training clips as latents: encoded once into memory, then drawn from at every step.

A frozen encoder gives a clip the same latents at every visit, so encoding it again is wasted; bit flips and noise are
drawn after it and stay fresh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import Progress
from torch import Tensor

from videoar.data.captions import COLOURS, DIRECTIONS, SHAPES, SPEEDS, Attributes, caption_of, combinations
from videoar.data.folder import VideoFolder
from videoar.data.pixels import from_uint8
from videoar.data.sprites import sample_batch
from videoar.model_folder import load_model_folder, save_model_folder
from videoar.training.clips import ClipsConfig
from videoar_kernels.reference.philox import philox_uniform


class LatentBatch(NamedTuple):
    """Latents (B, ...) float32, in the form of their encoder, and one caption a clip, "" where it has none."""

    latents: Tensor
    captions: list[str]


@dataclass(frozen=True)
class LatentPool:
    """Encoded clips: `latents` (P, ...) float16 and P captions."""

    latents: Tensor
    captions: list[str]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` (captions) and `model.safetensors` (latents)."""
        save_model_folder(folder, {"captions": self.captions}, {"latents": self.latents})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LatentPool:
        """Read what `save_pretrained` wrote."""
        config, state = load_model_folder(folder)
        return cls(state["latents"].half(), config["captions"])

    def draw(self, batch: int, *, seed: int, offset: int) -> LatentBatch:
        """`batch` clips with replacement, by Philox."""
        rows = (philox_uniform(batch, seed, offset) * len(self.captions)).long().tolist()
        return LatentBatch(self.latents[rows].float(), [self.captions[row] for row in rows])


Encode = Callable[[Tensor], Tensor]  # videos (B, 3, T, H, W) in [-1, 1], on the CPU, to latents


def latent_batches(
    encode: Encode,
    data: ClipsConfig,
    batch: int,
    seed: int,
    *,
    pool: int = 0,
    streams: int = 1,
    keep: Path | None = None,
) -> Callable[[int], LatentBatch]:
    """A function from a batch's number to its latents and captions.

    Args:
        encode: the frozen encoder.
        data: where clips come from.
        batch: clips a batch.
        seed: of the clips.
        pool: clips encoded once and drawn from; 0 encodes fresh ones for every batch.
        streams: Philox offsets a batch, of which the pool uses the first.
        keep: folder that the encoded pool is written to, and read from where it exists.
    """
    if not pool:
        draw = captioned_clips(data, batch, seed)

        @torch.no_grad()
        def fresh(number: int) -> LatentBatch:
            video, captions = draw(number)
            return LatentBatch(encode(video), captions)

        return fresh
    clips = LatentPool.from_pretrained(keep) if keep is not None and keep.is_dir() else None
    if clips is None:
        with Progress(transient=True) as progress:
            task = progress.add_task("encoding clips", total=pool)
            clips = encode_pool(encode, data, pool, seed, advance=lambda done: progress.update(task, completed=done))
        if keep is not None:
            clips.save_pretrained(keep)
    return lambda number: clips.draw(batch, seed=seed, offset=number * streams)


@torch.no_grad()
def encode_pool(
    encode: Encode,
    data: ClipsConfig,
    clips: int,
    seed: int,
    *,
    batch: int = 32,
    advance: Callable[[int], object] = lambda done: None,
) -> LatentPool:
    """Encode the first `clips` clips of the training data.

    Args:
        encode: the frozen encoder.
        data: where clips come from.
        clips: how many, rounded up to whole batches.
        seed: of the clips.
        batch: clips at a time.
        advance: told how many clips are done.
    """
    draw = captioned_clips(data, batch, seed)
    latents, captions = [], []
    for step in range(-(-clips // batch)):
        video, text = draw(step)
        latents.append(encode(video).half().cpu())
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
        source = partial(sample_batch, split=split, config=data.sprites)

    def draw(step: int) -> tuple[Tensor, list[str]]:
        clips = source(batch, seed, step * batch)
        return from_uint8(clips.video), clips.captions

    return draw


def all_captions(data: ClipsConfig, split: str = "all") -> list[str]:
    """Every caption that the data may show: what the word encoder's vocabulary is made of; a folder has no splits."""
    if data.kind == "sprites":
        return [
            caption_of(Attributes(COLOURS[c.colour], SHAPES[c.shape], DIRECTIONS[c.direction], speed))
            for c in combinations(split)
            for speed in SPEEDS
        ]
    folder = _folder(data)
    return [folder.captions[path] for path in folder.clips]


def _folder(data: ClipsConfig) -> VideoFolder:
    return VideoFolder(data.path, frames=data.frames, size=data.size, fps=data.rate)
