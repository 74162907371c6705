"""A row of paper U's Tables 2 to 4 on the sprites: adherence, distance to held-out clips, and time."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from videoar.data.pixels import from_uint8, to_uint8
from videoar.data.sprites import SpriteConfig, sample_batch
from videoar.evaluation.adherence import Adherence, generated, heldout_prompts, score
from videoar.evaluation.frechet import clip_features, frechet_distance
from videoar.next_unit.pipeline import UnitPipeline
from videoar.tokenizer.autoencoder import VideoAutoencoder

REFERENCE_SEED, FLOOR_SEED = 5_000_011, 6_000_011  # sequences of clips that no training run starts from
TIMED = "text, every pass over every unit, the clean passes, and decoding to pixels; loading and writing are not"


class Distances(NamedTuple):
    """Frechet distances to the same held-out clips, from as many clips each.

    Attributes:
        generated: of samples.
        reconstructed: of other held-out clips, as the autoencoder gives them back.
        real: of these clips themselves: what remains where nothing is wrong.
        clips: how many on the one side.
        reference: and on the other.
    """

    generated: float
    reconstructed: float
    real: float
    clips: int
    reference: int


class UnitQuality(NamedTuple):
    """One model under one way of sampling.

    Attributes:
        units: the scheme.
        sampling: all fields of `UnitDefaults`.
        passes: of the transformer a clip, clean ones included, those without the prompt not counted.
        adherence: per attribute, with its control.
        frechet: see there.
        seconds: median for one clip at batch 1.
        threads: used by PyTorch.
        device: where.
        timed: what the seconds include.
    """

    units: str
    sampling: dict
    passes: int
    adherence: Adherence
    frechet: Distances
    seconds: float
    threads: int
    device: str
    timed: str = TIMED

    def to_dict(self) -> dict:
        nested = {"adherence": self.adherence._asdict(), "frechet": self.frechet._asdict()}
        return {**self._asdict(), **nested}


def unit_quality(
    pipeline: UnitPipeline,
    *,
    prompts: int = 256,
    batch: int = 32,
    seed: int = 0,
    reference: int = 1024,
    timed: int = 5,
    progress: Callable[[str], object] = lambda _: None,
    **options,
) -> UnitQuality:
    """Measure a model on held-out prompts.

    Args:
        pipeline: trained on sprites.
        prompts: how many, and how many clips are compared with the reference.
        batch: clips at a time.
        seed: of prompts and samples.
        reference: real held-out clips on the other side of the distance.
        timed: clips generated for the time, after one that is not counted.
        progress: told what begins.
        options: fields of `UnitDefaults` to change.
    """
    chosen = pipeline.with_options(**options)
    captions = heldout_prompts(prompts, seed)
    progress("samples")
    videos = generated(chosen, captions, batch=batch, seed=seed)
    progress("adherence")
    adherence = score(videos, captions, wrap=chosen.defaults.wrap)
    progress("distance")
    distances = frechet_distances(chosen, videos, reference=reference, batch=batch)
    progress("time")
    defaults = chosen.defaults
    return UnitQuality(
        units=defaults.units,
        sampling=vars(defaults),
        passes=len(defaults.layout.units) * (defaults.steps + 1),
        adherence=adherence,
        frechet=distances,
        seconds=seconds_per_clip(chosen, captions, timed),
        threads=torch.get_num_threads(),
        device=str(chosen.device),
    )


@torch.no_grad()
def frechet_distances(pipeline: UnitPipeline, videos: Tensor, *, reference: int, batch: int = 32) -> Distances:
    """Distances of generated videos (N, T, H, W, 3) uint8 and of N real clips to `reference` real clips.

    Raises:
        TypeError: the autoencoder is not ours, whose encoder gives the features.
    """
    autoencoder = pipeline.autoencoder
    if not isinstance(autoencoder, VideoAutoencoder):
        raise TypeError(f"frechet_distances: expected a VideoAutoencoder, got {type(autoencoder).__name__}")
    config = SpriteConfig(frames=pipeline.frames, size=pipeline.frame_size[0], wrap=pipeline.defaults.wrap)

    def real(seed: int, first: int, count: int) -> Tensor:
        return sample_batch(count, seed, first, split="heldout", config=config).video

    def features(seed: int, count: int, change: Callable[[Tensor], Tensor] = lambda clips: clips) -> Tensor:
        starts = range(0, count, batch)
        clips = (change(real(seed, first, min(batch, count - first))) for first in starts)
        return torch.cat([clip_features(autoencoder, some, batch=batch) for some in clips])

    count = len(videos)
    there = features(REFERENCE_SEED, reference)
    return Distances(
        generated=frechet_distance(clip_features(autoencoder, videos, batch=batch), there),
        reconstructed=frechet_distance(features(FLOOR_SEED, count, partial(reconstructed, autoencoder)), there),
        real=frechet_distance(features(FLOOR_SEED, count), there),
        clips=count,
        reference=reference,
    )


@torch.no_grad()
def reconstructed(autoencoder: VideoAutoencoder, videos: Tensor, batch: int = 32) -> Tensor:
    """Videos (N, T, H, W, 3) uint8 as the autoencoder reproduces them."""
    device = autoencoder.latent_mean.device
    decoded = (autoencoder.decode(autoencoder.encode(from_uint8(some).to(device))) for some in videos.split(batch))
    return torch.cat([to_uint8(video).cpu() for video in decoded])


def seconds_per_clip(pipeline: UnitPipeline, captions: list[str], clips: int) -> float:
    """Median seconds for one clip at batch 1, after one that is not counted."""
    seconds = []
    for number in range(clips + 1):
        started = time.perf_counter()
        pipeline.generate([captions[number % len(captions)]], seed=number)
        if pipeline.device.type == "cuda":
            torch.cuda.synchronize(pipeline.device)
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])
