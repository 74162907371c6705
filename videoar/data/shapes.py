"""The four sprite shapes as antialiased pixel coverage.

Each shape fills a box of side `size` around its centre. d is the signed distance to its edge in pixels, negative
inside (for straight edges the maximum over edges of n . (p - p0)); a pixel is covered by clamp(1/2 - d, 0, 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from videoar.data.captions import SHAPES

_STAR_WAIST = 0.45  # inner over outer radius: pointed enough to be no circle, full enough to survive a blur
_STAR_RADIUS = 0.5 / math.cos(math.radians(18))  # the arms of a five-pointed star span 2 R cos 18 degrees


def coverage(shape: str, x: Tensor, y: Tensor, size: Tensor) -> Tensor:
    """Compute how much of each pixel a shape covers.

    Args:
        shape: one of SHAPES.
        x, y: pixel centres relative to the shape's centre, in pixels, x right and y down; broadcast together.
        size: side of the box the shape fills, in pixels; broadcasts with x and y.

    Returns:
        Coverage in [0, 1], of the broadcast shape.
    """
    return (0.5 - _DISTANCE[shape](x, y, size)).clamp_(0, 1)


def _circle(x: Tensor, y: Tensor, size: Tensor) -> Tensor:
    return torch.sqrt(x * x + y * y) - size / 2


def _square(x: Tensor, y: Tensor, size: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - size / 2


def _triangle(x: Tensor, y: Tensor, size: Tensor) -> Tensor:
    # Tip up, as high as wide: the right edge, (0, -size/2) to (size/2, size/2), has the normal (2, -1) / sqrt 5.
    side = (2 * x.abs() - y - size / 2) / math.sqrt(5)
    return torch.maximum(side, y - size / 2)


def _star(x: Tensor, y: Tensor, size: Tensor) -> Tensor:
    radius = _STAR_RADIUS * size
    cos, sin = math.cos(math.pi / 5), math.sin(math.pi / 5)
    x, up = (
        x.abs(),
        radius * (1 - cos) / 2 - y,
    )  # the box is centred, hence the star's own centre lies a little lower
    for _ in range(2):  # two mirrors at 36 degrees to the axis fold the five arms onto the upper one
        beyond = (x * cos - up * sin).clamp(min=0) * 2
        x, up = (x - beyond * cos).abs(), up + beyond * sin
    # What is left is one edge, from the tip (0, R) to the waist (w sin 36, w cos 36).
    nx, ny = 1 - _STAR_WAIST * cos, _STAR_WAIST * sin
    return (nx * x + ny * (up - radius)) / math.hypot(nx, ny)


_DISTANCE = dict(zip(SHAPES, (_circle, _square, _triangle, _star), strict=True))
