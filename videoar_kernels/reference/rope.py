"""Rotary position embedding over (t, h, w) in plain PyTorch: the definition of `videoar_kernels.rope`.

Pair i of a head is rotated by angle_i = position[axis(i)] * theta^(-2 j / dims[axis(i)]), where the D / 2 pairs
are shared out to the axes in the order t, h, w and j counts inside an axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def default_dims(head_dim: int) -> tuple[int, int, int]:
    """Return the split of a head over (t, h, w) that Wan uses: h and w take 2 * (D // 6) each, t the rest."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rope_angles(positions: Tensor, dims: Sequence[int], theta: float = 10000.0) -> Tensor:
    """Return the float64 angles (..., D / 2) of positions (..., 3)."""
    positions = positions.double()
    axes = []
    for axis, dim in enumerate(dims):
        exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / max(dim, 1)
        axes.append(positions[..., axis, None] * theta**-exponent)
    return torch.cat(axes, dim=-1)


def rope_3d(
    x: Tensor,
    positions: Tensor,
    *,
    dims: Sequence[int] | None = None,
    theta: float = 10000.0,
    interleaved: bool = True,
) -> Tensor:
    """Rotate x (B, H, L, D) by positions (L, 3) or (B, L, 3); see `videoar_kernels.rope_3d`."""
    dims = default_dims(x.shape[-1]) if dims is None else dims
    high = torch.promote_types(x.dtype, torch.float32)
    angles = rope_angles(positions, dims, theta)  # (L, D / 2) or (B, L, D / 2)
    if angles.ndim == 3:
        angles = angles[:, None]  # (B, 1, L, D / 2)
    cos, sin = angles.cos().to(high), angles.sin().to(high)
    if interleaved:
        a, b = x.to(high).unflatten(-1, (-1, 2)).unbind(-1)
        out = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    else:
        a, b = x.to(high).unflatten(-1, (2, -1)).unbind(-2)
        out = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
    return out.to(x.dtype)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    positions: Tensor,
    *,
    eps: float = 1e-6,
    dims: Sequence[int] | None = None,
    theta: float = 10000.0,
    interleaved: bool = True,
    full_width: bool = False,
) -> tuple[Tensor, Tensor]:
    """RMS-normalise q (B, Hq, L, D) and k (B, Hk, L, D), then rotate; see `videoar_kernels.qk_norm_rope`."""

    def one(x: Tensor, weight: Tensor | None) -> Tensor:
        high = torch.promote_types(x.dtype, torch.float32)
        y = x.to(high)
        mean_square = y.square().mean(dim=(1, 3) if full_width else -1, keepdim=True)
        y = y * torch.rsqrt(mean_square + eps)
        if weight is not None:
            weight = weight.to(high)
            y = y * (weight.view(x.shape[1], 1, x.shape[3]) if full_width else weight)
        return rope_3d(y, positions, dims=dims, theta=theta, interleaved=interleaved).to(x.dtype)

    return one(q, q_weight), one(k, k_weight)


def multiscale_positions(
    text_len: int,
    frames: int,
    scales: Sequence[tuple[int, int]],
    align: str = "index",
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return int64 positions (L, 3) of text, then every frame's scales; see `videoar_kernels.multiscale_positions`."""
    text = torch.arange(text_len, device=device)[:, None].expand(-1, 3)
    full_h, full_w = scales[-1]
    frame = []
    for h, w in scales:
        step_h, step_w = (full_h / h, full_w / w) if align == "grid" else (1.0, 1.0)
        rows = (torch.arange(h, device=device, dtype=torch.float64) * step_h).round().long()
        columns = (torch.arange(w, device=device, dtype=torch.float64) * step_w).round().long()
        frame.append(torch.cartesian_prod(rows, columns))
    space = torch.cat(frame)  # (N, 2)
    time = torch.arange(frames, device=device).repeat_interleave(len(space))[:, None]
    video = torch.cat((time, space.repeat(frames, 1)), dim=1) + text_len  # Eq. 7
    return torch.cat((text, video))


def unit_positions(
    grid: tuple[int, int, int],
    *,
    order: Tensor | None = None,
    text_len: int = 0,
    start: tuple[int, int, int] = (0, 0, 0),
    device: torch.device | str | None = None,
) -> Tensor:
    """Return int64 positions (L, 3) of a latent grid (T, H, W) in unit order; see `videoar_kernels.unit_positions`."""
    axes = [torch.arange(size, device=device) + first for size, first in zip(grid, start, strict=True)]
    video = torch.cartesian_prod(*axes) + text_len  # (T * H * W, 3), row-major
    if order is not None:
        video = video[order]
    text = torch.arange(text_len, device=device)[:, None].expand(-1, 3)
    return torch.cat((text, video))
