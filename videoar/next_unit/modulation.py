"""Timesteps and the modulation they give, one row a unit: never one row a token.

    unit_norm(x)_i = layer_norm(x_i) * (1 + scale[unit of i]) + shift[unit of i]

The kernels take rows that cover equally many tokens each. A sequence is cut into runs of units of equal length.
Source: Wan 2.1; paper U, Sec. 3.3 (every unit has a noise level of its own).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from videoar_kernels import adaln_norm, gated_residual


class Run(NamedTuple):
    """Neighbouring units of one length: their tokens, and their rows of the modulation."""

    tokens: slice
    rows: slice


def unit_runs(lengths: Sequence[int]) -> tuple[Run, ...]:
    """The runs of a sequence of units of these lengths, in order."""
    runs, token, row = [], 0, 0
    for length, group in groupby(lengths):
        count = len(list(group))
        runs.append(Run(slice(token, token + count * length), slice(row, row + count)))
        token, row = token + count * length, row + count
    return tuple(runs)


def unit_norm(x: Tensor, scale: Tensor, shift: Tensor, runs: Sequence[Run], eps: float) -> Tensor:
    """Layer norm of x (B, L, C), modulated by scale and shift (B, units, C)."""
    return _by_run(lambda t, r: adaln_norm(x[:, t], scale[:, r], shift[:, r], eps=eps, kind="layer"), runs)


def unit_residual(x: Tensor, y: Tensor, gate: Tensor, runs: Sequence[Run]) -> Tensor:
    """x + gate * y, with gate (B, units, C)."""
    return _by_run(lambda t, r: gated_residual(x[:, t], y[:, t], gate[:, r]), runs)


def timestep_sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of timesteps (...,) in 0 to 1000: float64 (..., width), as the original computes them.

    In float32 the angles near t = 1000 lose four digits, which shows in the output.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float64, device=timesteps.device)
    angles = timesteps.double()[..., None] * 10000.0 ** (-steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _by_run(part: Callable[[slice, slice], Tensor], runs: Sequence[Run]) -> Tensor:
    parts = [part(run.tokens, run.rows) for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
