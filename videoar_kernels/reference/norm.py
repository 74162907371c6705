"""Modulated norms, gated residual and SwiGLU in plain PyTorch: the definition of `videoar_kernels.norm`.

Everything is computed in float32 (float64 for float64 inputs) and rounded once, to the dtype of the first argument.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _per_token(modulation: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Repeat a modulation (C,), (B, 1, C), (B, F, C) or (B, L, C) so that it broadcasts with (B, L, C)."""
    modulation = modulation.to(dtype)
    if modulation.ndim == 1 or modulation.shape[1] == 1:
        return modulation
    return modulation.repeat_interleave(length // modulation.shape[1], dim=1)


def adaln_norm(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    kind: str = "rms",
) -> Tensor:
    """Return norm(x) * weight * (1 + scale) + shift over the last axis of x (B, L, C)."""
    high = torch.promote_types(x.dtype, torch.float32)
    y = x.to(high)
    if kind == "layer":
        y = y - y.mean(dim=-1, keepdim=True)
    y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.to(high)
    if scale is not None:
        y = y * (1 + _per_token(scale, x.shape[1], high))
    if shift is not None:
        y = y + _per_token(shift, x.shape[1], high)
    return y.to(x.dtype)


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """Return x + gate * y for x and y (B, L, C); the gate is shaped like a modulation of `adaln_norm`."""
    high = torch.promote_types(x.dtype, torch.float32)
    return (x.to(high) + _per_token(gate, x.shape[1], high) * y.to(high)).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    high = torch.promote_types(gate.dtype, torch.float32)
    return (torch.nn.functional.silu(gate.to(high)) * up.to(high)).to(gate.dtype)
