"""How a unit is denoised: the levels of noise, the two ways from one to the next, and where noise comes from.

Source: paper U, Sec. 3.4; the steps of Self-Forcing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from videoar.next_unit.flow import sampling_levels
from videoar_kernels.argument_types import finite


@dataclass(frozen=True)
class SamplingOptions:
    """How a unit is denoised.

    Args:
        steps: passes before the clean one.
        shift: of the noise levels, see `sampling_levels`.
        method: "renoise": predict the clean unit and add fresh noise of the next level, for distilled models;
            "euler": follow the flow, for models that were trained by flow matching alone.
        guidance: flow = uncond + guidance * (cond - uncond); 1 is none.
        context_noise: level of fresh noise at which later units see a finished one, which itself stays clean; 0 to
            below 1. As in Diffusion Forcing, which stabilises long rollouts so.

    Raises:
        ValueError: another method, no step, a shift that is not positive, a level outside its range, or an infinite
            number.
        TypeError: one that is no number.
    """

    steps: int = 4
    shift: float = 5.0
    method: Literal["renoise", "euler"] = "renoise"
    guidance: float = 1.0
    context_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in ("renoise", "euler"):
            raise ValueError(f"SamplingOptions: expected method 'renoise' or 'euler', got {self.method!r}")
        sampling_levels(self.steps, self.shift)
        for name in ("shift", "guidance", "context_noise"):
            object.__setattr__(self, name, finite("SamplingOptions", name, getattr(self, name)))
        if not 0 <= self.context_noise < 1:
            raise ValueError(f"SamplingOptions: expected context_noise in [0, 1), got {self.context_noise}")
        object.__setattr__(self, "steps", int(self.steps))


class SampledUnit(NamedTuple):
    """A finished unit: its clip and number, and its patches (B, n, patch_width), float32 or wider."""

    clip: int
    unit: int
    tokens: Tensor


def unit_noise(generators: Sequence[torch.Generator], tokens: int, width: int, like: Tensor) -> Tensor:
    """Fresh noise (B, tokens, width), every sample from its own generator on the CPU, so equal on every device."""
    return torch.stack([torch.randn(tokens, width, generator=g, device="cpu") for g in generators]).to(like)
