"""Flow matching: straight lines between data and noise, and the levels at which sampling looks at them.

    x_s = (1 - s) x_0 + s noise,  flow = noise - x_0,  so x_0 = x_s - s flow;  timestep = 1000 s

Source: Lipman et al. 2022; Wan 2.1; paper U, Sec. 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from videoar_kernels.argument_types import finite, whole


def shifted(level: Tensor, shift: float) -> Tensor:
    """Levels in 0 to 1 moved towards noise: s -> k s / (1 + (k - 1) s)."""
    return shift * level / (1 + (shift - 1) * level)


def sampling_levels(steps: int, shift: float = 5.0) -> tuple[float, ...]:
    """The noise levels of the steps, from 1 down, without the final 0.

    Four steps at shift 5 are 1, 0.9375, 0.8333 and 0.625: timesteps 1000, 937.5, 833.3 and 625, as in Self-Forcing.

    Raises:
        ValueError: no step, or a shift that is not positive and finite. TypeError: one that is no number.
    """
    steps, shift = whole("sampling_levels", "steps", steps), finite("sampling_levels", "shift", shift)
    if steps < 1 or shift <= 0:
        raise ValueError(f"sampling_levels: expected steps >= 1 and shift > 0, got {steps} and {shift}")
    even = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    return tuple(shifted(even, shift).tolist())


def add_noise(clean: Tensor, noise: Tensor, level: float | Tensor) -> Tensor:
    """x_s of x_0 and noise; a tensor of levels must broadcast."""
    return (1 - level) * clean + level * noise


def clean_from(noisy: Tensor, flow: Tensor, level: float | Tensor) -> Tensor:
    """The x_0 that a flow at x_s points to."""
    return noisy - level * flow
