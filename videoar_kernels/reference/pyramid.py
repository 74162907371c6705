"""Multi-scale residual quantization of every frame, with paper S's cross-frame error correction in the same pass.

For each frame: S = 0; for each scale k: u = down(z - S), label_k = u > 0, used_k = label_k xor flip_k,
S += up(code(used_k)). down = area (adaptive average), up = bilinear (align_corners=False).
Source: VideoAR (paper S), Eq. 2, 3 and 8; Infinity (bitwise self-correction).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .bits import bits_to_code, pack_bits
from .philox import philox_uniform

Scale = tuple[int, int]


class Pyramid(NamedTuple):
    labels: Tensor
    inputs: Tensor
    total: Tensor


class Step(NamedTuple):
    total: Tensor
    input: Tensor | None


def down(x: Tensor, scale: Scale) -> Tensor:
    """Area-resample x (..., H, W, d) to (..., h, w, d)."""
    if x.shape[-3:-1] == tuple(scale):
        return x
    flat = x.flatten(0, -4).movedim(-1, 1)  # (frames, d, H, W)
    return F.adaptive_avg_pool2d(flat, scale).movedim(1, -1).unflatten(0, x.shape[:-3])


def up(x: Tensor, size: Scale) -> Tensor:
    """Bilinearly resample x (..., h, w, d) to (..., H, W, d)."""
    if x.shape[-3:-1] == tuple(size):
        return x
    flat = x.flatten(0, -4).movedim(-1, 1)
    return F.interpolate(flat, size, mode="bilinear", align_corners=False).movedim(1, -1).unflatten(0, x.shape[:-3])


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _encode(z: Tensor, scales: Sequence[Scale], flip: Tensor | None) -> tuple[Tensor, list[Tensor | None], Tensor]:
    """Labels, the inputs of scales 2..K (None for the first) and the sum, all frames at once."""
    size, dim = z.shape[-3:-1], z.shape[-1]
    total = torch.zeros_like(z)
    labels, inputs, start = [], [], 0
    for scale in scales:
        n = scale[0] * scale[1]
        inputs.append(None if start == 0 else down(total.detach(), scale).flatten(2, 3))
        u = down(z - total.detach(), scale)  # (B, T, h, w, d)
        ones = u.detach() > 0
        labels.append(pack_bits(ones).flatten(2, 3))
        used = ones if flip is None else ones ^ flip[:, :, start : start + n].reshape(ones.shape)
        code = bits_to_code(pack_bits(used), dim, z.dtype)
        total = total + up(code + (u - u.detach()), size)  # straight-through, scale by scale
        start += n
    return torch.cat(labels, dim=2), inputs, total


def pyramid_encode(
    z: Tensor,
    scales: Sequence[Scale],
    *,
    flip_p: float | Tensor | None = None,
    seed: int | None = None,
    offset: int = 0,
    inherit: bool = True,
) -> Pyramid:
    """Encode z (B, T, H, W, d) into labels (B, T, N, bytes), inputs (B, T, N, d) and the reconstruction.

    The input of scale k > 1 is the frame's (corrupted) sum of the scales below it, area-resampled; that of scale 1 is
    the previous frame's final sum: corrupted with `inherit`, else as encoded without any flip; zeros for frame 0.
    """
    x = _wide(z)
    batch, frames, dim = x.shape[0], x.shape[1], x.shape[-1]
    tokens = sum(h * w for h, w in scales)
    flip = None
    if flip_p is not None:
        p = torch.as_tensor(flip_p, dtype=torch.float64, device=z.device).expand(batch, frames, len(scales))
        p = p.repeat_interleave(torch.tensor([h * w for h, w in scales], device=z.device), dim=2)
        flip = philox_uniform((batch, frames, tokens, dim), seed, offset, z.device) < p.unsqueeze(-1)
    labels, inputs, total = _encode(x, scales, flip)
    carried = total if inherit or flip is None else _encode(x.detach(), scales, None)[2]
    previous = torch.cat([torch.zeros_like(x[:, :1]), carried[:, :-1].detach()], dim=1)
    inputs[0] = down(previous, scales[0]).flatten(2, 3)
    return Pyramid(labels, torch.cat(inputs, dim=2).detach().to(z.dtype), total.to(z.dtype))


def pyramid_decode(
    bits: Tensor,
    scales: Sequence[Scale],
    *,
    dim: int | None = None,
    keep: int | Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sum the first `keep` (default all; int, (B,) or (B, T)) scales of bits (B, T, N, bytes): (B, T, H, W, d)."""
    size = scales[-1]
    code = bits_to_code(bits, dim, torch.float64 if dtype == torch.float64 else torch.float32)
    keep = torch.as_tensor(len(scales) if keep is None else keep, device=bits.device)
    keep = keep.reshape(keep.shape + (1,) * (2 - keep.ndim)).expand(bits.shape[:2])[..., None, None, None]
    total, start = code.new_zeros(*bits.shape[:2], *size, code.shape[-1]), 0
    for k, (h, w) in enumerate(scales):
        part = up(code[:, :, start : start + h * w].unflatten(2, (h, w)), size)
        total = torch.where(keep > k, total + part, total)
        start += h * w
    return total.to(dtype)


def pyramid_resample(x: Tensor, scales: Sequence[Scale]) -> Tensor:
    """Area-resample x (B, T, H, W, d) to every scale and concatenate the tokens: (B, T, N, d)."""
    wide = _wide(x)
    return torch.cat([down(wide, scale).flatten(2, 3) for scale in scales], dim=2).to(x.dtype)


def pyramid_step(total: Tensor, bits: Tensor, scale: Scale, next_scale: Scale | None = None) -> Step:
    """Add one scale's bits (B, h*w, bytes) to total (B, H, W, d); also the next scale's input (B, h'*w', d)."""
    wide = _wide(total)
    code = bits_to_code(bits, total.shape[-1], wide.dtype).unflatten(1, scale)
    wide = wide + up(code, total.shape[1:3])
    following = None if next_scale is None else down(wide, next_scale).flatten(1, 2).to(total.dtype)
    return Step(wide.to(total.dtype), following)
