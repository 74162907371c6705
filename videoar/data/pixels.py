"""Between files' bytes (T, H, W, 3) and models' values (3, T, H, W) in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def from_uint8(frames: Tensor) -> Tensor:
    """(..., T, H, W, 3) uint8 -> (..., 3, T, H, W) float32 in [-1, 1]."""
    return frames.to(torch.float32).div(127.5).sub(1).movedim(-1, -4)


def to_uint8(video: Tensor) -> Tensor:
    """(..., 3, T, H, W) in [-1, 1] -> (..., T, H, W, 3) uint8, rounded and clipped."""
    return video.detach().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).movedim(-4, -1)
