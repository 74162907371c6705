"""Cross-Frame Error Correction: how often the bits of each frame and scale are flipped. Source: paper S, Eq. 8.

    p(t, k) ~ U(p_min + delta t, p_max + delta t)          scales k > 1, and every scale of frame 0
    p(t, 1) ~ U(p(t - 1, K), p_max + delta t)              the first scale inherits from the frame before

`pyramid_encode` applies them, corrects the labels and hands the corrupted sum to the next frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoar_kernels.reference.philox import philox_uniform


@dataclass(frozen=True)
class CorrectionConfig:
    """Range of the flip probability and its growth per frame; App. A's values."""

    p_min: float = 0.0
    p_max: float = 0.25
    delta: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.p_min <= self.p_max <= 1:
            raise ValueError(f"CorrectionConfig: expected 0 <= p_min <= p_max <= 1, got {self.p_min} and {self.p_max}")


def flip_probabilities(
    batch: int, frames: int, scales: int, config: CorrectionConfig | None = None, *, seed: int, offset: int = 0
) -> Tensor:
    """Draw the flip probability of every clip, frame and scale.

    Args:
        batch, frames, scales: the shape.
        config: ranges; the paper's if None.
        seed, offset: of the draw.

    Returns:
        float32 (batch, frames, scales), at most 1.
    """
    config = config or CorrectionConfig()
    uniform = philox_uniform((batch, frames, scales), seed, offset)
    growth = config.delta * torch.arange(frames)[:, None]  # (T, 1)
    p = config.p_min + growth + (config.p_max - config.p_min) * uniform
    previous, highest = p[:, :-1, -1], config.p_max + growth[1:, 0]
    if scales > 1:
        p[:, 1:, 0] = previous + (highest - previous) * uniform[:, 1:, 0]
    else:
        for t in range(1, frames):  # the scale inherited from is itself inherited
            p[:, t, 0] = p[:, t - 1, 0] + (highest[t - 1] - p[:, t - 1, 0]) * uniform[:, t, 0]
    return p.clamp(max=1.0)
