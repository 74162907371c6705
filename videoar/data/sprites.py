"""Captioned moving sprites: endless, deterministic, measurable video without a download.

A clip is one sprite of one colour and shape that moves in a straight line at constant speed over a calm grey
gradient. Clip i of a seed draws its numbers from its own Philox counters, so it is the same clip however it is reached.
`measure` recovers the attributes from pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from videoar.data.captions import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SPEEDS,
    Attributes,
    caption_of,
    combinations,
    heldout_captions,
    parse_caption,
)
from videoar.data.measure import Measurement, measure, measure_batch
from videoar.data.palette import PALETTE
from videoar.data.shapes import coverage

__all__ = [
    "Attributes",
    "Measurement",
    "SpriteBatch",
    "SpriteConfig",
    "SpriteDataset",
    "SpriteParameters",
    "caption_of",
    "clip",
    "draw_parameters",
    "heldout_captions",
    "measure",
    "measure_batch",
    "parse_caption",
    "render_batch",
    "sample_batch",
]

_DRAWS = 8  # uniform numbers per clip, two Philox counters of four words
_WRAPPED_TRAVEL = 16  # frames that `travel` is counted over where motion has no end


@dataclass(frozen=True)
class SpriteConfig:
    """Size and variety of the clips; lengths in pixels are those of a 64-pixel frame and scale with `size`.

    Args:
        frames: frames per clip.
        size: height and width of a frame in pixels.
        sprite: smallest and largest box that holds a sprite.
        travel: way from the first frame to the last, slowly and quickly.
        level: darkest and brightest mean of a background, 0 to 1.
        slope: largest change of a background's brightness from its middle to an edge.
        wrap: what leaves the frame enters it on the other side, so that motion never ends; `travel` is then counted
            over 16 frames whatever the clip's length.
    """

    frames: int = 17
    size: int = 64
    sprite: tuple[float, float] = (20.0, 28.0)
    travel: tuple[float, float] = (12.0, 28.0)
    level: tuple[float, float] = (0.38, 0.56)
    slope: float = 0.05
    wrap: bool = False

    def __post_init__(self) -> None:
        if self.frames < 1 or self.size < 16:
            raise ValueError(f"SpriteConfig: expected frames >= 1 and size >= 16, got {self.frames} and {self.size}")
        if not 0 < self.sprite[0] <= self.sprite[1] or self.sprite[1] + max(self.travel) > 62:
            raise ValueError(f"SpriteConfig: expected sprite + travel <= 62, got {self.sprite} and {self.travel}")


class SpriteParameters(NamedTuple):
    """What a batch of clips is drawn from; every field has shape (B,) unless noted, lengths in pixels."""

    colour: Tensor  # index into COLOURS
    shape: Tensor  # index into SHAPES
    direction: Tensor  # index into DIRECTIONS
    speed: Tensor  # index into SPEEDS
    size: Tensor  # side of the sprite's box
    start: Tensor  # (B, 2) centre in the first frame, x then y, pixel edges at integers
    step: Tensor  # (B, 2) motion per frame
    level: Tensor  # brightness in the middle of the background
    slope: Tensor  # (B, 2) its change from the middle to the right and lower edge


class SpriteBatch(NamedTuple):
    """A batch of clips: `video` (B, T, H, W, 3) uint8, `mask` (B, T, H, W) float32 coverage by the sprite."""

    video: Tensor
    captions: list[str]
    attributes: list[Attributes]
    mask: Tensor


def sample_batch(
    batch: int, seed: int, index: int = 0, *, split: str = "train", config: SpriteConfig | None = None
) -> SpriteBatch:
    """Render the clips index, index + 1, ..., index + batch - 1 of a seed.

    Args:
        batch: number of clips.
        seed: which endless sequence of clips, 0 to 2**64 - 1.
        index: the first clip.
        split: "train", "heldout" or "all" combinations of colour, shape and direction.
        config: size and variety; the defaults where None.

    Returns:
        The clips, the same on every machine and however they are batched.
    """
    config = config or SpriteConfig()
    parameters = draw_parameters(batch, seed, index, split=split, config=config)
    video, mask = render_batch(parameters, config)
    attributes = [
        Attributes(COLOURS[c], SHAPES[s], DIRECTIONS[d], SPEEDS[v])
        for c, s, d, v in torch.stack(parameters[:4], 1).tolist()
    ]
    return SpriteBatch(video, [caption_of(a) for a in attributes], attributes, mask)


def clip(index: int, seed: int, *, split: str = "train", config: SpriteConfig | None = None) -> tuple[Tensor, str]:
    """Render clip `index` of a seed: its video (T, H, W, 3) uint8 and its caption."""
    one = sample_batch(1, seed, index, split=split, config=config)
    return one.video[0], one.captions[0]


def draw_parameters(
    batch: int, seed: int, index: int = 0, *, split: str = "train", config: SpriteConfig | None = None
) -> SpriteParameters:
    """Draw what `sample_batch` renders, with the same arguments."""
    config = config or SpriteConfig()
    if batch < 0 or index < 0:
        raise ValueError(f"draw_parameters: expected batch >= 0 and index >= 0, got {batch} and {index}")
    allowed = torch.tensor(combinations(split))
    words = np.random.Philox(key=seed, counter=index * _DRAWS // 4).random_raw(batch * _DRAWS)
    uniform = torch.from_numpy((words >> 11).astype(np.float64) * 2.0**-53).view(batch, _DRAWS)
    which, speed, size, x, y, level, right, down = uniform.unbind(1)

    unit = config.size / 64
    colour, shape, direction = allowed[(which * len(allowed)).long()].unbind(1)
    speed = (speed * len(SPEEDS)).long()
    size = unit * (config.sprite[0] + size * (config.sprite[1] - config.sprite[0]))
    angle = direction * (2 * math.pi / len(DIRECTIONS))
    way = (
        unit
        * torch.tensor(config.travel, dtype=torch.float64)[speed, None]
        * torch.stack([angle.cos(), angle.sin()], 1)
    )
    margin = size[:, None] / 2 + unit  # one pixel of background on every side
    low, high = margin - way.clamp(max=0), config.size - margin - way.clamp(min=0)
    if config.wrap:
        low, high = torch.zeros_like(low), torch.full_like(high, config.size)
    return SpriteParameters(
        colour=colour,
        shape=shape,
        direction=direction,
        speed=speed,
        size=size.float(),
        start=(low + torch.stack([x, y], 1) * (high - low)).float(),
        step=(way / (_WRAPPED_TRAVEL if config.wrap else max(config.frames - 1, 1))).float(),
        level=(config.level[0] + level * (config.level[1] - config.level[0])).float(),
        slope=((torch.stack([right, down], 1) * 2 - 1) * config.slope).float(),
    )


def render_batch(parameters: SpriteParameters, config: SpriteConfig | None = None) -> tuple[Tensor, Tensor]:
    """Render clips.

    Args:
        parameters: of B clips.
        config: gives the number of frames and their size.

    Returns:
        The video (B, T, S, S, 3) uint8 and the sprite's coverage of each pixel (B, T, S, S) float32.
    """
    config = config or SpriteConfig()
    frames, side = config.frames, config.size
    batch = parameters.colour.numel()
    background = _background(parameters, side)  # (B, S, S)
    centre = parameters.start[:, None] + torch.arange(frames)[:, None] * parameters.step[:, None]  # (B, T, 2)

    # Only the patch around the sprite is computed per frame; the rest of a frame is its clip's background.
    patch = min(side, math.ceil(config.sprite[1] * side / 64) + 2)
    corner = (centre - patch / 2).round().long()  # (B, T, 2)
    corner = corner if config.wrap else corner.clamp_(0, side - patch)
    cells = corner[..., None] + torch.arange(patch)  # (B, T, 2, P)
    offset = cells + 0.5 - centre[..., None]
    cover = torch.empty(batch, frames, patch, patch)
    for number, shape in enumerate(SHAPES):
        which = (parameters.shape == number).nonzero()[:, 0]
        x, y = offset[which, :, 0, None, :], offset[which, :, 1, :, None]
        cover[which] = coverage(shape, x, y, parameters.size[which, None, None, None])

    inside = cells % side
    pixel = inside[:, :, 1, :, None] * side + inside[:, :, 0, None, :]  # (B, T, P, P)
    behind = background.flatten(1)[:, None].expand(-1, frames, -1).gather(2, pixel.flatten(2)).view_as(cover)[..., None]
    colour = PALETTE[parameters.colour, None, None, None]  # (B, 1, 1, 1, 3)
    drawn = behind + cover[..., None] * (colour - behind)

    grey = _to_bytes(background)[:, None, ..., None].expand(-1, frames, -1, -1, 3)
    video = grey.contiguous()
    place = (pixel + torch.arange(batch * frames).view(batch, frames, 1, 1) * side * side).flatten()
    video.view(-1, 3)[place] = _to_bytes(drawn).view(-1, 3)
    mask = torch.zeros(batch, frames, side, side)
    mask.view(-1)[place] = cover.view(-1)
    return video, mask


class SpriteDataset(IterableDataset):
    """Endless training clips, dealt out over ranks and loader workers so that no two see the same clip.

    Yields `SpriteBatch`es of `batch` clips (pass `batch_size=None` to the DataLoader). Step n of a run is the
    same whatever the number of workers, and `start` resumes at a step.

    Args:
        batch: clips per step on this rank.
        seed: which endless sequence of clips.
        split: "train", "heldout" or "all".
        config: size and variety.
        rank, world: this process and how many there are.
        start: the first step.
    """

    def __init__(
        self,
        batch: int,
        seed: int,
        *,
        split: str = "train",
        config: SpriteConfig | None = None,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= rank < world:
            raise ValueError(f"SpriteDataset: expected 0 <= rank < world, got {rank} and {world}")
        self.batch, self.seed, self.split, self.config = batch, seed, split, config or SpriteConfig()
        self.rank, self.world, self.start = rank, world, start

    def __iter__(self) -> Iterator[SpriteBatch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.start + first
        while True:
            index = (step * self.world + self.rank) * self.batch
            yield sample_batch(self.batch, self.seed, index, split=self.split, config=self.config)
            step += stride


def _background(parameters: SpriteParameters, side: int) -> Tensor:
    ramp = (torch.arange(side) + 0.5) * (2 / side) - 1  # -1 to 1 from edge to edge
    right, down = parameters.slope.unbind(1)
    return (
        parameters.level[:, None, None]
        + right[:, None, None] * ramp[None, None]
        + down[:, None, None] * ramp[None, :, None]
    )


def _to_bytes(value: Tensor) -> Tensor:
    return (value * 255).round_().to(torch.uint8)
