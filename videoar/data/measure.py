"""Recover a sprite's attributes from the pixels of a clip.

Per frame: a plane fitted robustly to the background b, the sprite's colour c as the mean of what stands out, and
    alpha = clamp((rgb - b) . (c - b) / |c - b|^2, 0, 1),
whose centre of mass gives the motion and whose Tanimoto overlap <a, t> / (<a, a> + <t, t> - <a, t>) with
rendered templates t gives the shape. What matches no template is no sprite: blank or smeared clips are None.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from videoar.data.captions import COLOURS, DIRECTIONS, SHAPES, SPEEDS, Attributes
from videoar.data.palette import PALETTE
from videoar.data.shapes import coverage

_SIDE = 64  # lengths below are for frames of 64 pixels; others are resized
_WINDOW = 40  # side of the crop that holds a sprite
_SLOW, _FAST = 12.0, 28.0  # SpriteConfig.travel
_WRAPPED_TRAVEL = 16  # frames that it is counted over where sprites wrap around

_CONTRAST = 0.2  # RGB distance from the background below which nothing stands out
_COLOUR_DISTANCE = 0.5  # RGB distance to a palette colour; half the side of the cube is 0.45
_OVERLAP = 0.7  # Tanimoto overlap below which a thing is no sprite
_SHAPE_OVERLAP = 0.8  # and below which, on average over the clip, its shape is anybody's guess
_SHAPE_MARGIN = 0.015  # as it is where the second best shape comes this close: a smear is no circle
_PRESENT = 0.75  # share of frames that must show a sprite
_STRAY = 2.5  # pixels off the straight line (root mean square) above which there is no one direction


class Measurement(NamedTuple):
    """What was seen in a clip; per-frame fields have length T, indices -1 where a frame shows no sprite."""

    attributes: Attributes
    colours: Tensor  # (T,) index into COLOURS
    shapes: Tensor  # (T,) index into SHAPES
    centres: Tensor  # (T, 2) x, y in pixels of a 64-pixel frame; NaN where there is no sprite
    areas: Tensor  # (T,) pixels of such a frame that the sprite covers by more than half; NaN as above
    backgrounds: Tensor  # (T,) mean brightness of what lies behind it, 0 to 1
    overlap: float  # mean Tanimoto overlap with the best template, 0 to 1
    colour_kept: float  # share of all frames that show the clip's colour
    shape_kept: float  # share of all frames that show the clip's shape


def measure(video: Tensor | np.ndarray) -> Attributes:
    """Recognise the sprite of one clip.

    Args:
        video: (T, H, W, 3) uint8.

    Returns:
        Colour, shape, direction and speed; None for what cannot be recognised.
    """
    return measure_batch(torch.as_tensor(video)[None])[0].attributes


def measure_batch(videos: Tensor | np.ndarray, *, wrap: bool = False) -> list[Measurement]:
    """Recognise the sprite of each clip and how steadily it is shown.

    Args:
        videos: (B, T, H, W, 3) uint8.
        wrap: what leaves a frame enters it on the other side (`SpriteConfig.wrap`); speed is then judged over 16
            frames. `centres` stay within the frame.

    Returns:
        One `Measurement` a clip.

    Raises:
        ValueError, TypeError: the videos have another shape or dtype.
    """
    videos = torch.as_tensor(videos)
    if videos.dtype != torch.uint8:
        raise TypeError(f"measure: expected uint8 video, got {videos.dtype}")
    if videos.ndim != 5 or videos.shape[-1] != 3 or 0 in videos.shape[1:]:
        raise ValueError(f"measure: expected video of shape (T, H, W, 3), got {tuple(videos.shape[1:])}")
    return [_measure_clip(video, wrap) for video in videos.cpu()]


def _measure_clip(video: Tensor, wrap: bool) -> Measurement:
    rgb = video.permute(0, 3, 1, 2).float() / 255  # (T, 3, H, W)
    if rgb.shape[-2:] != (_SIDE, _SIDE):
        rgb = F.interpolate(rgb, (_SIDE, _SIDE), mode="bilinear", align_corners=False, antialias=True)
    background = _background(rgb)
    excess = rgb - background
    colour, contrast = _stand_out(excess)  # (T, 3), relative to the background
    alpha = torch.einsum("tchw,tc->thw", excess, colour / (colour * colour).sum(1, keepdim=True).clamp(min=1e-4))
    alpha = alpha.clamp_(0, 1)
    moved = _to_middle(alpha) if wrap else torch.zeros(len(alpha), 2, dtype=torch.int64)
    if wrap:
        alpha, rgb = _rolled(alpha, moved), _rolled(rgb, moved)
    centre = _centre_of_mass(alpha)  # (T, 2)
    overlaps = _match(alpha, centre)  # (T, shapes)

    absolute = _core_colour(rgb, alpha, centre)
    distance = torch.cdist(absolute, PALETTE)  # (T, colours)
    present = (contrast > _CONTRAST) & (overlaps.amax(1) > _OVERLAP) & (distance.amin(1) < _COLOUR_DISTANCE)
    nothing = torch.tensor(-1)
    colours = torch.where(present, distance.argmin(1), nothing)
    shapes = torch.where(present, overlaps.argmax(1), nothing)
    centres = torch.where(present[:, None], (centre - moved) % _SIDE if wrap else centre, torch.nan)
    attributes = Attributes(None, None, None, None)
    if present.float().mean() >= _PRESENT:
        attributes = Attributes(
            COLOURS[distance[present].mean(0).argmin()], _shape(overlaps[present].mean(0)), *_motion(centres, wrap)
        )
    return Measurement(
        attributes=attributes,
        colours=colours,
        shapes=shapes,
        centres=centres,
        areas=torch.where(present, (alpha > 0.5).sum((1, 2)), torch.nan),
        backgrounds=background.mean((1, 2, 3)),
        overlap=overlaps.amax(1).mean().item(),
        colour_kept=_share(colours, COLOURS, attributes.colour),
        shape_kept=_share(shapes, SHAPES, attributes.shape),
    )


def _shape(overlaps: Tensor) -> str | None:
    second, best = overlaps.sort()[0][-2:].tolist()
    return SHAPES[overlaps.argmax()] if best > _SHAPE_OVERLAP and best - second > _SHAPE_MARGIN else None


def _share(seen: Tensor, names: tuple[str, ...], name: str | None) -> float:
    return 0.0 if name is None else (seen == names.index(name)).float().mean().item()


def _background(rgb: Tensor) -> Tensor:
    """Fit a plane to each channel of each frame, giving little weight to what lies far from it."""
    cells = F.avg_pool2d(rgb, 2).flatten(2)  # (T, 3, N): the fit needs no single pixels
    basis = _plane_basis(_SIDE // 2)  # (N, 3)
    products = (basis[:, :, None] * basis[:, None, :]).flatten(1)  # (N, 9)
    fit = cells.median(2, keepdim=True)[0]
    for spread in (0.3, 0.2, 0.12, 0.08, 0.08):
        far = (cells - fit).square().sum(1)  # (T, N)
        weight = 1 / (1 + far / spread**2).square()  # Geman-McClure
        normal = (weight @ products).view(-1, 3, 3) + 1e-3 * torch.eye(3)
        plane = torch.linalg.solve(normal, ((weight[:, None] * cells) @ basis).transpose(1, 2))  # (T, 3, channels)
        fit = plane.transpose(1, 2) @ basis.T  # (T, channels, N)
    return (plane.transpose(1, 2) @ _plane_basis(_SIDE).T).view_as(rgb)


@lru_cache
def _plane_basis(side: int) -> Tensor:
    ramp = (torch.arange(side) + 0.5) * (2 / side) - 1
    down, right = torch.meshgrid(ramp, ramp, indexing="ij")
    return torch.stack([torch.ones_like(right), right, down], -1).view(-1, 3)


def _stand_out(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Find each frame's foreground colour relative to its background, and how far it stands out."""
    smooth = F.avg_pool2d(excess, 3, 2, 1)  # noise must not decide what stands out most
    distance = smooth.square().sum(1).sqrt().flatten(1)  # (T, N)
    # The smallest sprite, a star of 20 pixels, covers 3% of the frame; 1% lies in its core.
    peak = distance.kthvalue(int(distance.shape[1] * 0.985), 1)[0]
    core = (distance > 0.75 * peak[:, None]).float()
    colour = torch.einsum("tn,tcn->tc", core, smooth.flatten(2)) / core.sum(1, keepdim=True).clamp(min=1)
    return colour, peak


def _centre_of_mass(alpha: Tensor) -> Tensor:
    position = torch.arange(_SIDE) + 0.5
    mass = F.avg_pool2d(alpha[:, None], 3, 1, 1)[:, 0]
    mass = (mass - 0.3).clamp(min=0)
    centre = torch.full((len(alpha), 2), _SIDE / 2)
    for reach in (_SIDE, 24.0, 18.0, 18.0):
        x_near = ((position - centre[:, :1]).abs() < reach).float()
        y_near = ((position - centre[:, 1:]).abs() < reach).float()
        near = mass * y_near[:, :, None] * x_near[:, None, :]
        total = near.sum((1, 2)).clamp(min=1e-6)
        centre = torch.stack([(near.sum(1) * position).sum(1), (near.sum(2) * position).sum(1)], 1) / total[:, None]
        centre = torch.where(total[:, None] > 1e-6, centre, _SIDE / 2)
    return centre


def _to_middle(alpha: Tensor) -> Tensor:
    """How far, (T, 2) whole pixels along x and y, to roll each frame for its sprite to stand in the middle."""
    mass = (alpha - 0.3).clamp(min=0)
    angle = (torch.arange(_SIDE) + 0.5) * (2 * math.pi / _SIDE)
    ways = []
    for axis in (1, 2):  # what is left is x, then y
        along = mass.sum(axis)
        mean = torch.atan2(along @ angle.sin(), along @ angle.cos())
        ways.append((_SIDE / 2 - mean * (_SIDE / (2 * math.pi))).round().long())
    return torch.stack(ways, 1)


def _rolled(frames: Tensor, ways: Tensor) -> Tensor:
    """Frames (T, ..., H, W), each rolled by its own way (T, 2)."""
    rolled = [torch.roll(frame, (x, y), (-1, -2)) for frame, (x, y) in zip(frames, ways.tolist(), strict=True)]
    return torch.stack(rolled)


def _core_colour(rgb: Tensor, alpha: Tensor, centre: Tensor) -> Tensor:
    position = torch.arange(_SIDE) + 0.5
    near = ((position - centre[:, :1]).abs() < 14)[:, None, :] & ((position - centre[:, 1:]).abs() < 14)[:, :, None]
    weight = (alpha * near).pow(4).flatten(1)
    return torch.einsum("tn,tcn->tc", weight, rgb.flatten(2)) / weight.sum(1, keepdim=True).clamp(min=1e-6)


def _match(alpha: Tensor, centre: Tensor) -> Tensor:
    """Compute each frame's best overlap with every shape, over sizes and small shifts."""
    frames = len(alpha)
    grid = torch.arange(_WINDOW) - (_WINDOW - 1) / 2
    x = (centre[:, :1] + grid)[:, None, :].expand(-1, _WINDOW, -1)
    y = (centre[:, 1:] + grid)[:, :, None].expand(-1, -1, _WINDOW)
    where = torch.stack([x, y], -1) * (2 / _SIDE) - 1
    crop = F.grid_sample(alpha[:, None], where, padding_mode="zeros", align_corners=False).view(frames, -1)
    templates, energy = _templates()
    product = crop @ templates.T  # (T, templates)
    overlap = product / (crop.square().sum(1, keepdim=True) + energy - product)
    return overlap.view(frames, len(SHAPES), -1).amax(2)


@lru_cache
def _templates() -> tuple[Tensor, Tensor]:
    """Render the shapes, slightly blurred, at 17 to 31 pixels and shifts of up to one, about their centres of mass."""
    grid = torch.arange(_WINDOW) - (_WINDOW - 1) / 2
    x, y = grid[None, :], grid[:, None]
    rendered = []
    for shape in SHAPES:
        for size in range(17, 32):
            cover = coverage(shape, x, y, torch.tensor(float(size)))
            low = (cover.sum(1) * grid).sum() / cover.sum()
            for right in (-1.0, 0.0, 1.0):
                for down in (-1.0, 0.0, 1.0):
                    rendered.append(coverage(shape, x - right, y - down + low, torch.tensor(float(size))))
    images = F.avg_pool2d(torch.stack(rendered)[:, None], 3, 1, 1) * 0.5 + torch.stack(rendered)[:, None] * 0.5
    templates = images.flatten(1)
    return templates, templates.square().sum(1)


def _motion(centres: Tensor, wrap: bool) -> tuple[str | None, str | None]:
    """Fit a straight line at constant speed to the centres, robustly; None if the sprite stands or strays."""
    frames = len(centres)
    time = torch.arange(frames).float()
    seen = ~centres[:, 0].isnan()
    if seen.sum() < 3:
        return None, None
    time, path = time[seen], centres[seen]
    if wrap:
        # The shorter way round between frames.
        ways = (path.diff(dim=0) + _SIDE / 2) % _SIDE - _SIDE / 2
        path = torch.cat([path[:1], path[:1] + ways.cumsum(0)])
    weight = torch.ones_like(time)
    for _ in range(4):
        share = weight / weight.sum()
        mean_time, mean_path = (share * time).sum(), (share[:, None] * path).sum(0)
        late = time - mean_time
        velocity = ((share * late)[:, None] * (path - mean_path)).sum(0) / (share * late * late).sum()
        stray = (path - mean_path - late[:, None] * velocity).norm(dim=1)
        weight = 1 / (1 + stray.square()).square()
    travel = velocity * (_WRAPPED_TRAVEL if wrap else frames - 1)
    if travel.norm() < _SLOW / 2 or stray.square().mean().sqrt() > _STRAY:
        return None, None
    turn = math.atan2(travel[1].item(), travel[0].item()) * len(DIRECTIONS) / (2 * math.pi)
    speed = SPEEDS[int(travel.norm().item() > math.sqrt(_SLOW * _FAST))]
    return DIRECTIONS[round(turn) % len(DIRECTIONS)], speed
