"""Does a sample show what its prompt says: `measure` on generated sprites against the caption.

With the wrong prompt the same videos must score at chance: the check can fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from videoar.data.pixels import from_uint8, to_uint8
from videoar.data.sprites import SpriteConfig, heldout_captions, measure_batch, parse_caption, sample_batch
from videoar.next_scale.pipeline import VideoPipeline


class VideoGenerator(Protocol):
    """A pipeline of either paper."""

    def generate(self, prompts: Sequence[str], *, seed: int | Sequence[int], **options) -> Tensor: ...


ATTRIBUTES = ("colour", "shape", "direction", "speed")


class Adherence(NamedTuple):
    """Shares over the clips, 0 to 1.

    `right` and `wrong_prompt` hold a share per attribute: measured against the prompt, and against another clip's.
    `colour_kept`, `shape_kept` are the mean shares of frames that show the clip's own colour and shape.
    """

    clips: int
    right: dict[str, float]
    wrong_prompt: dict[str, float]
    colour_kept: float
    shape_kept: float


def heldout_prompts(count: int, seed: int = 0) -> list[str]:
    """`count` captions of held-out combinations, every one equally often, in random order."""
    captions = heldout_captions()
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(captions), generator=generator) for _ in range(-(-count // len(captions)))])
    return [captions[index] for index in order[:count].tolist()]


def text_to_video_adherence(
    pipeline: VideoGenerator, *, prompts: int = 256, batch: int = 32, seed: int = 0, wrap: bool = False, **options
) -> Adherence:
    """Generate held-out prompts and measure them; `wrap` as in `score`, `options` as the pipeline's `generate`."""
    captions = heldout_prompts(prompts, seed)
    return score(generated(pipeline, captions, batch=batch, seed=seed, **options), captions, wrap=wrap)


def generated(
    pipeline: VideoGenerator, captions: Sequence[str], *, batch: int = 32, seed: int = 0, **options
) -> Tensor:
    """Videos (N, T, H, W, 3) uint8 of captions, each from a seed of its own."""
    videos = []
    for first in range(0, len(captions), batch):
        some = captions[first : first + batch]
        seeds = [seed * 1_000_003 + index for index in range(first, first + len(some))]
        videos.append(to_uint8(pipeline.generate(some, seed=seeds, **options)).cpu())
    return torch.cat(videos)


def image_to_video_adherence(
    pipeline: VideoPipeline, *, clips: int = 128, batch: int = 32, seed: int = 0, **options
) -> Adherence:
    """Continue the first frame of held-out clips under their own caption; `options` as `VideoPipeline.stream`."""
    frames = options.get("frames", pipeline.defaults.frames)
    captions, videos = [], []
    for first in range(0, clips, batch):
        size = min(batch, clips - first)
        config = SpriteConfig(frames=frames, size=pipeline.frame_size[0])
        truth = sample_batch(size, 2_000_003 + seed, first, split="heldout", config=config)
        seeds = [seed * 1_000_003 + index for index in range(first, first + size)]
        given = from_uint8(truth.video[:, :1])
        videos.append(to_uint8(pipeline.generate(truth.captions, video=given, seed=seeds, **options)))
        captions += truth.captions
    return score(torch.cat(videos), captions)


def score(videos: Tensor, captions: Sequence[str], *, wrap: bool = False) -> Adherence:
    """Measure videos (B, T, H, W, 3) uint8 against the captions that asked for them; `wrap`: as on a torus."""
    seen = measure_batch(videos, wrap=wrap)
    wanted = [parse_caption(caption) for caption in captions]
    # Half the list away: another held-out caption, unrelated by the random order.
    other = wanted[len(wanted) // 2 :] + wanted[: len(wanted) // 2]

    def share(against: Sequence, name: str) -> float:
        hits = [getattr(m.attributes, name) == getattr(w, name) for m, w in zip(seen, against, strict=True)]
        return sum(hits) / max(len(hits), 1)

    return Adherence(
        clips=len(seen),
        right={name: share(wanted, name) for name in ATTRIBUTES},
        wrong_prompt={name: share(other, name) for name in ATTRIBUTES},
        colour_kept=sum(m.colour_kept for m in seen) / max(len(seen), 1),
        shape_kept=sum(m.shape_kept for m in seen) / max(len(seen), 1),
    )
